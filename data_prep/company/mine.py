"""A first company pack out of an archive's held-out conversations, for a person to edit.

    python -m data_prep.company.mine run=runs/acme out=my-company [least=20]

What customers want (the archive's intents), how they open, which tools agents used in which order, and whether a person took over become scenarios; openings of half of an intent's
customers become the wordings of training, those of the other half the wordings of evaluation. What an archive cannot tell is marked EDIT: which deeds policy allows (`allowed`), what
a tool needs and returns, what must be asked for, what a promise looks like. Nothing of a conversation is taken but what the anonymiser let through.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import yaml

from data_prep.company.pack import load_pack
from data_prep.conversation import read_jsonl

TRANSFER = "transfer_to_human"
OPENINGS = 40         # of an intent and language, in either half
VALUES = 20           # of a tool's argument
SENTENCES = 5         # of agents, at a step


class MineError(ValueError):
    """Nothing can be mined: what is missing, what to do."""


def held_out(run: Path) -> list[dict]:
    """The anonymised conversations of the customers that training does not see. Raises: MineError."""
    test, archive = run / "prepare/sft/test.jsonl", run / "anonymise/conversations.jsonl"
    if not test.is_file() or not archive.is_file():
        raise MineError(f"{run} has no {'prepare/sft/test.jsonl' if archive.is_file() else 'anonymise/conversations.jsonl'}: run 'stages=[anonymise,prepare]' on it first")
    kept = {row["conversation_id"] for _, row in read_jsonl(test)}
    return [c for _, c in read_jsonl(archive) if c["id"] in kept]


def facts(conversation: dict) -> dict | None:
    """What a conversation tells: intent, language, opening, tools in order with their arguments, last words of the agent, whether a person took over. None without a customer or an intent."""
    messages = conversation["messages"]
    intent = (conversation.get("outcome") or {}).get("intent")
    first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
    opening = [m["content"] for m in messages[:first] if m["role"] == "user" and m["content"].strip()]
    if not intent or not opening:
        return None
    calls = [call["function"] for m in messages if m["role"] == "assistant" for call in m.get("tool_calls") or []]
    handed = bool((conversation.get("outcome") or {}).get("handed_off")) or any(c["name"] == TRANSFER for c in calls)
    said = [m["content"] for m in messages if m["role"] == "assistant" and m["content"]]
    return {"intent": _name(intent), "language": str(conversation.get("locale") or "en").split("-")[0], "opening": " ".join(opening), "last": said[-1] if said else "", "handed_off": handed,
            "tools": list(dict.fromkeys(c["name"] for c in calls if c["name"] != TRANSFER)), "arguments": [(c["name"], _object(c["arguments"])) for c in calls if c["name"] != TRANSFER],
            "system": next((m["content"] for m in messages if m["role"] == "system"), ""), "customer": str((conversation.get("customer") or {}).get("id", conversation["id"]))}


def _name(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text.lower()).strip("_") or "other"


def _object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def pack_of(found: list[dict], name: str, least: int) -> dict[str, object]:
    """The files of a pack by path, as plain data. Raises: MineError where no intent has so many conversations."""
    counts = Counter(f["intent"] for f in found)
    intents = [intent for intent, n in counts.most_common() if n >= least]
    if not intents:
        raise MineError(f"no intent has {least} held-out conversations ({len(found)} have an intent at all): give least=, or conversations with outcome.intent")
    mine = [f for f in found if f["intent"] in intents]
    spoken = Counter(f["language"] for f in mine)
    languages = [code for code, n in spoken.items() if all(sum(f["language"] == code and f["intent"] == intent for f in mine) >= 2 for intent in intents)] or [spoken.most_common(1)[0][0]]
    mine = [f for f in mine if f["language"] in languages]
    values, parameters = _arguments(mine)
    scenarios = [_scenario(intent, [f for f in mine if f["intent"] == intent], parameters) for intent in intents]
    files: dict[str, object] = {
        "pack.yaml": {"name": name, "currency": "EUR", "languages": {code: round(spoken[code] / sum(spoken[c] for c in languages), 3) for code in languages}, "merchants": {"seen": [name], "unseen": [name]}, "policies": {},
                      "system": Counter(f["system"] for f in mine).most_common(1)[0][0].replace("<", "(").replace(">", ")") or f"Support of {name}.", "public_identifiers": [], "business_numbers": [],
                      "order": {key: sorted({str(v) for v in seen})[:VALUES] for key, seen in values.items()}, "account": {}, "promises": {}, "mail_domains": ["example.com"],
                      "phones": dict.fromkeys(languages, "+44 7700 900###"), "slots": {}, "arguments": {key: f"order.{key}" for key in values}},
        "tools.yaml": [*({"name": tool, "description": "EDIT", "anytime": True, "parameters": dict.fromkeys(keys, "string"), "effects": {f"case.{tool}": "True"}, "returns": {"ok": "True"}} for tool, keys in parameters.items()),
                       {"name": TRANSFER, "description": "Hand the conversation over to a human colleague.", "parameters": {"reason": "string", "summary": "string"}, "effects": {"handoff.reason": "arguments.reason"}, "returns": {"ok": "True"}}],
        "scenarios.yaml": scenarios, "agents.yaml": [{"id": "a1", "style": "kind", "share": 1, "habits": {}}], "raters.yaml": [{"id": "r1", "severity": 0.0, "noise": 0.5, "share": 1}]}
    for code in languages:
        for half, folder in ((0, "phrases"), (1, "unseen")):
            files[f"{folder}/{code}.yaml"] = _phrases(code, [f for f in mine if f["language"] == code], intents, half)
    return files


def _arguments(mine: list[dict]) -> tuple[dict[str, list], dict[str, list[str]]]:
    """(values seen of each argument, arguments of each tool)."""
    values, parameters = defaultdict(list), defaultdict(dict)
    for fact in mine:
        for tool, arguments in fact["arguments"]:
            parameters[tool] |= dict.fromkeys(arguments)          # a tool without arguments is one too
            for key, value in arguments.items():
                values[key].append(value)
    return dict(values), {tool: list(keys) for tool, keys in parameters.items()}


def _scenario(intent: str, mine: list[dict], parameters: dict[str, list[str]]) -> dict:
    """One scenario an intent: what agents did most often, and how it mostly ended."""
    path = Counter(tuple(f["tools"]) for f in mine).most_common(1)[0][0]
    path = [tool for tool in path if tool in parameters]
    handed = sum(f["handed_off"] for f in mine) > len(mine) / 2
    steps = [*(f"call {tool}" for tool in path), "handoff human" if handed else f"say {intent}"]
    done = " and ".join(f"case.{tool}" for tool in path)
    return {"name": intent, "intent": intent, "weight": len(mine), "steps": steps, "success": "handoff.reason != ''" if handed else " and ".join(filter(None, [done, f"said('{intent}')"]))}


def _phrases(code: str, mine: list[dict], intents: list[str], half: int) -> dict:
    """A language's wordings: openings of one half of the customers; what a scripted customer needs beside is plain and marked EDIT."""
    openings, said = {}, {}
    for intent in intents:
        of = [f for f in mine if f["intent"] == intent]
        customers = sorted({f["customer"] for f in of})
        own = [f for f in of if f["customer"] in customers[half::2]] or of           # of one customer alone both halves are the same, for neither may be empty
        openings[intent] = [_plain(text) for text in dict.fromkeys(f["opening"] for f in own)][:OPENINGS]
        said[intent] = [_plain(text) for text, _ in Counter(f["last"] for f in of if f["last"] and not f["handed_off"]).most_common(SENTENCES)] or ["EDIT: what an agent says here."]
    handing = [_plain(text) for text, _ in Counter(f["last"] for f in mine if f["handed_off"] and f["last"]).most_common(SENTENCES)] or ["EDIT: a colleague takes over."]
    edit = ["EDIT"]
    made = {"locale": code, "customer": {"greetings": edit, "closings": edit, "openings": openings, "insist": {"default": edit}, "give": {}, "mention": {}, "extra": edit, "change_of_mind": edit, "again": edit,
                                         "already_gave": ["<value>"], "thanks": edit, "accepts_no": edit, "leaves": edit}}
    names = {"names": {"first": [f"First{half}"], "last": [f"Last{half}"]}, "streets": [f"Street{half}"]}
    if half:
        return {**made, **names}
    return {**made, "agent": {style: {**said, "handoff_human": handing, "goodbye": edit} for style in ("kind", "curt")}, "summaries": {"human": "EDIT"},
            "recognise": {"refusal": "EDIT", **dict.fromkeys(intents, ".+")}, "products": ["EDIT"], **names}


def _plain(text: str) -> str:
    """A sentence in which nothing is a choice or a placeholder."""
    return " ".join(text.translate(str.maketrans({"{": "(", "}": ")", "<": "(", ">": ")", "|": "/"})).split())


def main(arguments: list[str]) -> int:
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if not {"run", "out"} <= set(given) or set(given) - {"run", "out", "least"}:
        print(__doc__)
        return 0 if {"-h", "--help"} & set(arguments) else 1
    out = Path(given["out"])
    try:
        if out.exists():
            raise MineError(f"{out} exists already: give another out=, what you have edited is not written over")
        found = [f for f in map(facts, held_out(Path(given["run"]))) if f]
        files = pack_of(found, out.name, int(given.get("least", 20)))
    except (MineError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    partial = out.with_name(out.name + ".partial")
    for name, content in files.items():
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# Mined from held-out transcripts. EDIT marks what an archive does not tell.\n" + yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=200), encoding="utf-8")
    partial.rename(out)
    pack = load_pack(str(out))
    print(f"{out}: {len(pack.scenarios)} scenarios, {len(pack.tools)} tools, {', '.join(pack.languages)}, of {len(found)} held-out conversations. Now edit it: {out}/tools.yaml (allowed, requires, returns), "
          f"scenarios.yaml (steps, success), phrases/*.yaml (recognise), and try company={out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
