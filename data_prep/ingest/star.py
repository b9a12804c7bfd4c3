"""STAR (Mosig et al. 2020, arXiv 2010.11853): crowd workers on both sides of 24 tasks, one JSON file a dialogue.

What was sent is `utter` and `pick_suggestion`; `request_suggestions` is what the wizard typed to get suggestions and was
never sent. Only dialogues with CompletionLevel "Complete" are used. Queries to the knowledge base become tool calls, and
its answers tool messages. The user's questionnaire becomes a thumb on the whole conversation, and each sent
message keeps whether it was a picked suggestion or the wizard's own words (`suggested`).
"""

from __future__ import annotations

import datetime
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from data_prep.artifacts import StageError
from data_prep.conversation import tool_call


def conversations(data, run_dir: str) -> Iterator[tuple[str, object]]:
    for name, dialogue in _dialogues(data.root):
        if dialogue is not None and dialogue.get("CompletionLevel") != "Complete":
            yield name, f"an incomplete dialogue ({dialogue.get('CompletionLevel')})"
        else:
            yield name, dialogue and _conversation(dialogue)


def feedback(data, run_dir: str) -> Iterator[tuple[str, object]]:
    for name, dialogue in _dialogues(data.root):
        if dialogue is None or dialogue.get("CompletionLevel") != "Complete":
            continue
        answers = [a["Answer"] for a in dialogue.get("UserQuestionnaire", []) if isinstance(a.get("Answer"), bool)]
        if answers:
            yield name, {"conversation_id": f"star-{dialogue['DialogueID']}", "rater_id": "customer", "kind": "thumb",
                         "thumb": "up" if all(answers) else "down"}


def _dialogues(root: str) -> Iterator[tuple[str, dict | None]]:
    """The dialogues of the folder `dialogues/`, or of the archive `star_dialogues.tar.gz`, in the order of their names."""
    folder, archive = Path(root) / "dialogues", Path(root) / "star_dialogues.tar.gz"
    if folder.is_dir():
        for path in sorted(folder.glob("*.json")):
            yield path.name, _json(path.read_bytes())
    elif archive.is_file():
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and "/dialogues/" in f"/{member.name}" and member.name.endswith(".json"):
                    yield Path(member.name).name, _json(tar.extractfile(member).read())
    else:
        raise StageError(f"data.root={root} holds neither dialogues/ nor star_dialogues.tar.gz: give the folder of the STAR data")


def _json(raw: bytes) -> dict | None:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _conversation(dialogue: dict) -> dict:
    messages, calls, started = [], 0, None
    for event in dialogue["Events"]:
        agent, action, text = event["Agent"], event["Action"], (event.get("Text") or "").strip()
        at = event.get("UnixTime")
        started = started or at
        if agent == "User" and action == "utter" and text:
            messages.append({"role": "user", "content": text})
        elif agent == "Wizard" and action in ("utter", "pick_suggestion") and text:
            messages.append({"role": "assistant", "content": text, "suggested": action == "pick_suggestion"})
        elif agent == "Wizard" and action == "query":
            calls += 1
            messages.append({"role": "assistant", "content": "", "tool_calls": [
                tool_call(event["APIName"], _constraints(event.get("Constraints", [])), f"call_{calls}")]})
        elif agent == "KnowledgeBase" and action == "return_item" and messages and messages[-1].get("tool_calls"):
            item = {k: v for k, v in (event.get("Item") or {}).items() if k != "APIName"}
            messages.append({"role": "tool", "tool_call_id": messages[-1]["tool_calls"][0]["id"], "content": json.dumps(item, ensure_ascii=False)})
    time = datetime.datetime.fromtimestamp(started, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if started else None
    return {"id": f"star-{dialogue['DialogueID']}", "locale": "en-US", "started_at": time, "messages": messages,
            "customer": {"id": dialogue["AnonymizedUserWorkerID"]}, "agents": [{"id": dialogue["AnonymizedWizardWorkerID"]}],
            "outcome": {"intent": ",".join(sorted(c["Task"] for c in dialogue["Scenario"]["WizardCapabilities"]))}}


def _constraints(constraints: list[dict]) -> dict:
    """`[{"Day": "api.is_equal_to(\\"Friday\\")"}, …]` as plain arguments: `{"Day": "Friday"}`."""
    return {key: _value(value) for constraint in constraints for key, value in constraint.items()}


def _value(value: object) -> str:
    match = re.search(r'"([^"]*)"', str(value))
    return match.group(1) if match else str(value)
