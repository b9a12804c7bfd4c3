"""Raw record → Conversation: one small adapter per source.

An adapter is a module with `conversations(data, run_dir)` and `feedback(data, run_dir)`. The first yields
`(where, record)` and the second `(where, record)` too: `where` names the line or file, `record` is a plain dictionary
in the shape of `Conversation` or `Feedback`, None where it could not be read, a BadRecord where it was read and is wrong, or a string:
the reason why this record is left out on purpose. A dictionary may say in `left_out` how many messages were left out of it,
by reason. Checking, counting, exclusion and the merging of actions happen once, here.
"""

from __future__ import annotations

import datetime
import importlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.artifacts import StageError
from data_prep.conversation import BadRecord, Conversation, Feedback
from data_prep.ingest import actions
from data_prep.ingest.files import moment, objects

FORMATS = {"company": "data_prep.ingest.company", "intercom": "data_prep.ingest.intercom", "jsonl": "data_prep.ingest.jsonl",
           "star": "data_prep.ingest.star", "table": "data_prep.ingest.table", "zendesk": "data_prep.ingest.zendesk"}
FIRST_FEW = 100          # records before the share of bad ones is judged


class Reader:
    """Reads one source, counts what it could not use by reason, and stops where too much of it is unusable."""

    def __init__(self, config):
        if config.data.format not in FORMATS:
            raise StageError(f"unknown data.format {config.data.format!r}; the formats are {sorted(FORMATS)}")
        self.data, self.run_dir = config.data, config.run_dir
        self.adapter = importlib.import_module(FORMATS[config.data.format])
        self.bad: list[dict] = []          # where and why, never the text
        self.counts: Counter = Counter()
        self.places: dict[str, list[int]] = {}     # where a conversation's messages stand since actions were merged in

    def conversations(self) -> Iterator[Conversation]:
        """Raises: StageError when the source is empty, missing, wholly unusable, or more than `data.max_bad_fraction` of it is unreadable."""
        excluded, oldest, done = _excluded(self.data.exclude_customers), _oldest(self.data), self._actions()
        seen: set[str] = set()
        for where, record in self._limited(self.adapter.conversations(self.data, self.run_dir)):
            if isinstance(record, dict):
                record = _unwanted(record, excluded, oldest) or self._readable(record)
            conversation = self._checked(where, record, Conversation.from_record, "conversations")
            if conversation is None:
                continue
            if conversation.id in seen:
                self._reject(where, "an id that occurred before", "conversations")
            elif conversation.sides() != {"user", "assistant"}:
                # Nobody answered, or nobody asked: common in helpdesks, and no fault of the file.
                self._reject(where, "one side only: " + (", ".join(sorted(conversation.sides())) or "nobody"), "conversations", bad=False)
            else:
                seen.add(conversation.id)
                self.counts["conversations kept"] += 1
                yield self._with_actions(conversation, done.pop(conversation.id, []))
        if not self.counts["conversations"]:
            raise StageError("the archive holds no conversation: check data.conversations or data.root")
        self._judge("conversations", final=True)
        if not seen:
            reason, count = Counter(bad["reason"] for bad in self.bad if bad["kind"] == "conversations").most_common(1)[0]
            raise StageError(f"none of {self.counts['conversations']} conversations is left ({count}: {reason}): check the data.* settings")
        for left in done.values():
            self.counts["actions: for a conversation that is not in the archive or was dropped"] += len(left)

    def feedback(self, known: Callable[[str], bool]) -> Iterator[Feedback]:
        for where, record in self.adapter.feedback(self.data, self.run_dir):
            feedback = self._checked(where, record, Feedback.from_record, "feedback")
            if feedback is None:
                continue
            if not known(feedback.conversation_id):
                self._reject(where, "feedback for a conversation that is not in the archive or was dropped", "feedback", bad=False)
            else:
                self.counts["feedback kept"] += 1
                yield self._moved(feedback)
        self._judge("feedback", final=True)

    def _actions(self) -> dict[str, list[dict]]:
        """The actions by conversation, all in memory: they are small beside the conversations, which stream past."""
        found = defaultdict(list)
        for where, record in objects(self.data.actions, "data.actions") if self.data.actions else ():
            action = self._checked(where, record, actions.checked, "actions")
            if action is not None:
                found[action["conversation_id"]].append(action)
        self._judge("actions", final=True)
        return found

    def _with_actions(self, conversation: Conversation, done: list[dict]) -> Conversation:
        if done:
            self.counts["actions merged"] += len(done)
            conversation.messages, self.places[conversation.id] = actions.merge(conversation.messages, done)
        return conversation

    def _moved(self, feedback: Feedback) -> Feedback:
        """The source counts messages without the actions between them."""
        places = self.places.get(feedback.conversation_id)
        if places and feedback.message_index is not None and 0 <= feedback.message_index < len(places):
            feedback.message_index = places[feedback.message_index]
        return feedback

    def _readable(self, record: dict) -> dict | str:
        """Count the messages that the adapter left out; where it left nothing, the record is no bad one."""
        for reason, count in record.get("left_out", {}).items():
            self.counts[f"messages: {reason}"] += count
        return record if record.get("messages") or "left_out" not in record else "no message that a customer or an agent wrote for the other to read"

    def _limited(self, records: Iterator) -> Iterator:
        for number, record in enumerate(records):
            if self.data.limit is not None and number >= self.data.limit:
                return
            yield record

    def _checked(self, where: str, record: object, make: Callable, kind: str):
        self.counts[kind] += 1
        if record is None:
            return self._reject(where, "not JSON in UTF-8", kind)
        if isinstance(record, str):
            return self._reject(where, record, kind, bad=False)
        try:
            if isinstance(record, BadRecord):
                raise record
            return make(record)
        except BadRecord as error:
            return self._reject(where, str(error), kind)

    def _reject(self, where: str, reason: str, kind: str, *, bad: bool = True) -> None:
        self.bad.append({"where": where, "kind": kind, "reason": reason, "bad": bad})
        self.counts[f"{kind} bad"] += bad
        self.counts[f"{kind}: {reason}"] += 1
        self._judge(kind)

    def _judge(self, kind: str, *, final: bool = False) -> None:
        total, bad = self.counts[kind], self.counts[f"{kind} bad"]
        if bad > self.data.max_bad_fraction * total and (final or total >= FIRST_FEW):
            first = next(b for b in self.bad if b["kind"] == kind and b["bad"])
            raise StageError(f"{bad} of the first {total} {kind} cannot be used (first: {first['where']}: {first['reason']}); "
                             f"mend the source, or allow more with data.max_bad_fraction={math.ceil(100 * bad / total) / 100:.2f}")


def _excluded(path: str | None) -> frozenset[str]:
    """The customers' ids in the file of data.exclude_customers, one a line."""
    if path is None:
        return frozenset()
    if not Path(path).is_file():
        raise StageError(f"data.exclude_customers={path} is no file: give a text file with one customer's id a line")
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    return frozenset(line.strip() for line in lines if line.strip())


def _oldest(data) -> datetime.datetime | None:
    """The start before which a conversation is too old, or None where any age will do."""
    if data.max_age_days is None:
        return None
    today = datetime.datetime.now(datetime.UTC) if data.today is None else moment(data.today)
    if today is None:
        raise StageError(f"data.today={data.today} is no date: give it as 2026-03-01, or null for now")
    return today - datetime.timedelta(days=data.max_age_days)


def _unwanted(record: dict, excluded: frozenset[str], oldest: datetime.datetime | None) -> str | None:
    """Why a conversation must not be used, before anything else of it is looked at."""
    people = [record.get("customer"), *(others if isinstance(others := record.get("agents"), list) else ())]      # a second customer stands with the agents
    if any(isinstance(person, dict) and str(person.get("id")) in excluded for person in people):
        return "a customer in data.exclude_customers"
    if oldest is None:
        return None
    started = moment(record.get("started_at"))
    if started is None:
        return "no time of its start, and data.max_age_days asks for one"
    return "older than data.max_age_days" if started < oldest else None
