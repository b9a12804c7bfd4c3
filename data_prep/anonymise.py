"""Stage `anonymise`: personal data out, surrogates in, and nothing released that the leak check objects to.

    python -m training.pipeline 'stages=[anonymise]' data=jsonl data.conversations=chats.jsonl
    python -m data_prep.anonymise < in.jsonl > out.jsonl        the same, as a filter: one line out per line in, in order

The conversation is the unit: what is found once is replaced everywhere in it, in messages, drafts, edits, tool
arguments and tool results. What leaves carries a seal (HMAC); a sealed record passes through unchanged. A record that
still leaks goes to `quarantine.jsonl`: its id and the reasons, never its text.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from data_prep.artifacts import StageError, stage_output
from data_prep.company.pack import load_pack
from data_prep.conversation import BadRecord, Conversation, Feedback, write_json, write_jsonl
from data_prep.ingest import Reader
from data_prep.pii.detect import detect, known_entities
from data_prep.pii.leak import leaks
from data_prep.pii.surrogates import Surrogates
from data_prep.report import page, table

DEMO_KEY = b"supportloop demo key: for the sample company only"


class Masker:
    """Anonymises one conversation after the other. Public identifiers and business numbers (patterns) stay."""

    def __init__(self, key: bytes, public: list[str], business_numbers: list[str]):
        self.key = key
        self.public = tuple(re.compile(re.escape(value)) for value in public)
        self.business = tuple(re.compile(pattern) for pattern in business_numbers)
        self.counts: Counter = Counter()

    def apply(self, conversation: Conversation, edits: list[Feedback]) -> tuple[dict, list[str]] | tuple[None, list[str]]:
        """(record, edits' texts) ready for release, or (None, reasons) for quarantine."""
        known = known_entities(conversation.customer, conversation.agents)
        names = [p["name"] for p in (conversation.customer, *conversation.agents) if p.get("name")]
        surrogates = Surrogates(self.key, conversation.id, conversation.locale, names)
        texts = [*_texts(conversation.messages), *(f.edit for f in edits)]
        spans = {text: detect(text, conversation.locale, known, self.public, self.business) for text in dict.fromkeys(texts)}
        found = {span.text: span.kind for each in spans.values() for span in each}
        again = {**known, **found}       # what is found once is looked for everywhere in the conversation
        spans = {text: detect(text, conversation.locale, again, self.public, self.business) for text in spans}
        masked = [(span.kind, span.text) for each in spans.values() for span in each]

        def mask(text: str) -> str:
            for span in reversed(spans[text]):
                text = text[: span.start] + surrogates.of(span.kind, span.text) + text[span.end:]
            return text

        record = self._record(conversation, mask)
        masked_edits = [mask(f.edit) for f in edits]
        reasons = leaks([*_texts(record["messages"]), *masked_edits], known, masked, self.public)
        if reasons:
            return None, reasons
        for kind, _ in masked:
            self.counts[kind] += 1
        return seal(record, self.key), masked_edits

    def _record(self, conversation: Conversation, mask) -> dict:
        messages = [_map_texts(message, mask) for message in conversation.messages]
        for message in messages:
            if "author_id" in message:
                message["author_id"] = pseudonym(self.key, "agent", message["author_id"])
        customer = conversation.customer.get("id")
        record = conversation.to_record() | {"messages": messages, "agents": [{"id": pseudonym(self.key, "agent", a.get("id"))} for a in conversation.agents]}
        record["customer"] = {"id": pseudonym(self.key, "customer", customer if customer else conversation.id)}
        return {k: v for k, v in record.items() if v not in ([], {}, None)}


def _texts(messages: list[dict]) -> list[str]:
    """Every text of a conversation in which personal data may stand."""
    texts: list[str] = []
    for message in messages:
        for part in (message, *message.get("drafts", [])):
            texts.append(part.get("content") or "")
            texts += [call["function"]["arguments"] for call in part.get("tool_calls", [])]
    return texts


def _map_texts(message: dict, mask) -> dict:
    changed = {**message, "content": mask(message.get("content") or "")}
    if message.get("tool_calls"):
        changed["tool_calls"] = [{**call, "function": {**call["function"], "arguments": mask(call["function"]["arguments"])}} for call in message["tool_calls"]]
    if message.get("drafts"):
        changed["drafts"] = [_map_texts(draft, mask) for draft in message["drafts"]]
    return changed


def pseudonym(key: bytes, kind: str, value: object) -> str:
    return hmac.new(key, f"{kind}\x00{value}".encode(), hashlib.sha256).hexdigest()[:12]


def seal(record: dict, key: bytes) -> dict:
    """The record with an HMAC over its canonical JSON: proof that it came out of this stage under this key."""
    body = {k: v for k, v in record.items() if k != "seal"}
    return {**body, "seal": hmac.new(key, json.dumps(body, sort_keys=True, ensure_ascii=False).encode(), hashlib.sha256).hexdigest()}


def is_sealed(record: dict, key: bytes) -> bool:
    return isinstance(record.get("seal"), str) and hmac.compare_digest(record["seal"], seal(record, key)["seal"])


def read_key(key_file: str | None, *, sample: bool) -> bytes:
    """The secret that surrogates and pseudonyms depend on. Raises: StageError where a real archive has none."""
    if key_file:
        return Path(key_file).read_bytes().strip()
    if os.environ.get("SUPPORTLOOP_KEY"):
        return os.environ["SUPPORTLOOP_KEY"].encode()
    if sample:
        return DEMO_KEY
    raise StageError("anonymise needs a secret key of your own: set SUPPORTLOOP_KEY or anonymise.key_file (the published demo key serves the sample company only)")


def run(config) -> None:
    pack = load_pack(config.company) if config.company else None
    key = read_key(config.anonymise.key_file, sample=config.data.format in ("company", "star"))
    company = pack.company if pack else {}
    masker = Masker(key, company.get("public_identifiers", []), company.get("business_numbers", []))
    reader = Reader(config)
    with stage_output(config, "anonymise") as out:
        edits = _edits_by_conversation(config)
        quarantine, masked_edits, kept = [], {}, set()
        with open(out / "conversations.jsonl", "w", encoding="utf-8") as conversations:
            for conversation in tqdm(reader.conversations(), desc="anonymise", unit="conv"):
                mine = edits.get(conversation.id, [])
                record, result = masker.apply(conversation, mine)
                if record is None:
                    quarantine.append({"id": conversation.id, "reasons": result})
                    continue
                conversations.write(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")
                kept.add(conversation.id)
                for feedback, text in zip(mine, result, strict=True):
                    masked_edits[feedback.edit, conversation.id] = text
        _check_budget(config, quarantine, len(kept))
        feedback = [_released(f, masked_edits, key) for f in reader.feedback(kept.__contains__)]
        write_jsonl(out / "feedback.jsonl", feedback)
        write_jsonl(out / "quarantine.jsonl", quarantine + [{"id": bad["where"], "reasons": [bad["reason"]]} for bad in reader.bad])
        report = {"conversations": len(kept), "quarantined": len(quarantine), "feedback": len(feedback), "masked": dict(masker.counts),
                  "input": dict(reader.counts), "claim": "pseudonymised: whoever holds the key can link a customer's conversations",
                  "reasons": dict(Counter(reason for q in quarantine for reason in q["reasons"]))}
        write_json(out / "report.json", report)
        _write_html(out / "report.html", report)
        out.summary(f"{len(kept)} conversations, {sum(masker.counts.values())} personal details masked, {len(quarantine)} quarantined, {len(feedback)} feedback", **report)


def _edits_by_conversation(config) -> dict[str, list[Feedback]]:
    edits: dict[str, list[Feedback]] = {}
    for _, record in Reader(config).adapter.feedback(config.data, config.run_dir):
        if isinstance(record, dict) and record.get("kind") == "edit":
            try:
                feedback = Feedback.from_record(record)
            except BadRecord:
                continue            # counted where all feedback is read
            edits.setdefault(feedback.conversation_id, []).append(feedback)
    return edits


def _released(feedback: Feedback, masked_edits: dict, key: bytes) -> dict:
    record = feedback.to_record()
    if feedback.edit is not None:
        record["edit"] = masked_edits[feedback.edit, feedback.conversation_id]
    if feedback.rater_id and feedback.rater_id != "customer":
        record["rater_id"] = pseudonym(key, "rater", feedback.rater_id)
    return record


def _check_budget(config, quarantine: list[dict], kept: int) -> None:
    total = len(quarantine) + kept
    if len(quarantine) > config.anonymise.max_leak_fraction * total:
        first = quarantine[0]
        raise StageError(f"{len(quarantine)} of {total} conversations still leak after masking (first: {first['id']}: {', '.join(first['reasons'])}); "
                         "nothing was released. Mend the source, or raise anonymise.max_leak_fraction")


def _write_html(path: Path, report: dict) -> None:
    page(path, "Anonymisation", [
        f"<p>{report['conversations']} conversations released, {report['quarantined']} quarantined. The output is <b>{report['claim']}</b>.</p>",
        "<h2>Masked</h2>", table(["kind", "count"], sorted(report["masked"].items())),
        "<h2>Quarantine</h2>", table(["reason", "conversations"], sorted(report["reasons"].items())),
        "<h2>Read</h2>", table(["what", "count"], sorted(report["input"].items()))])


def main() -> int:
    """The filter: JSONL in, JSONL out, one line a line."""
    key = read_key(None, sample=False)
    masker = Masker(key, [], [])
    for line in sys.stdin:
        try:
            record = json.loads(line)
            if isinstance(record, dict) and is_sealed(record, key):
                released = record
            else:
                conversation = Conversation.from_record(record)
                released, reasons = masker.apply(conversation, [])
                released = released or {"id": conversation.id, "quarantined": reasons}
        except BadRecord as error:
            released = {"id": None, "quarantined": [str(error)]}
        except ValueError:
            released = {"id": None, "quarantined": ["not JSON"]}
        print(json.dumps(released, ensure_ascii=False, sort_keys=True), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StageError as error:
        sys.exit(f"error: {error}")
