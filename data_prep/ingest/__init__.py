"""Raw record → Conversation: one small adapter per source.

An adapter is a module with `conversations(data, run_dir)` and `feedback(data, run_dir)`. The first yields
`(where, record)` and the second `(where, record)` too: `where` names the line or file, `record` is a plain dictionary
in the shape of `Conversation` or `Feedback`, None where it could not be read, or a string: the reason why this record
is left out on purpose. Checking and counting happen once, here.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator

from data_prep.artifacts import StageError
from data_prep.conversation import BadRecord, Conversation, Feedback

FORMATS = {"company": "data_prep.ingest.company", "jsonl": "data_prep.ingest.jsonl", "star": "data_prep.ingest.star"}
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

    def conversations(self) -> Iterator[Conversation]:
        """Raises: StageError when the source is empty, missing, or more than `data.max_bad_fraction` of it is unusable."""
        seen: set[str] = set()
        for where, record in self._limited(self.adapter.conversations(self.data, self.run_dir)):
            conversation = self._checked(where, record, Conversation.from_record, "conversations")
            if conversation is None:
                continue
            if conversation.id in seen:
                self._reject(where, "an id that occurred before", "conversations")
            elif conversation.sides() != {"user", "assistant"}:
                self._reject(where, "one side only: " + (", ".join(sorted(conversation.sides())) or "nobody"), "conversations")
            else:
                seen.add(conversation.id)
                self.counts["conversations kept"] += 1
                yield conversation
        if not self.counts["conversations"]:
            raise StageError("the archive holds no conversation: check data.conversations or data.root")
        self._judge("conversations", final=True)

    def feedback(self, known: Callable[[str], bool]) -> Iterator[Feedback]:
        for where, record in self.adapter.feedback(self.data, self.run_dir):
            feedback = self._checked(where, record, Feedback.from_record, "feedback")
            if feedback is None:
                continue
            if not known(feedback.conversation_id):
                self._reject(where, "feedback for a conversation that is not in the archive or was dropped", "feedback", bad=False)
            else:
                self.counts["feedback kept"] += 1
                yield feedback
        self._judge("feedback", final=True)

    def _limited(self, records: Iterator) -> Iterator:
        for number, record in enumerate(records):
            if self.data.limit is not None and number >= self.data.limit:
                return
            yield record

    def _checked(self, where: str, record: object, make: Callable, kind: str):
        self.counts[kind] += 1
        if record is None:
            return self._reject(where, "not JSON", kind)
        if isinstance(record, str):
            return self._reject(where, record, kind, bad=False)
        try:
            return make(record)
        except BadRecord as error:
            return self._reject(where, str(error), kind)

    def _reject(self, where: str, reason: str, kind: str, *, bad: bool = True) -> None:
        self.bad.append({"where": where, "kind": kind, "reason": reason})
        self.counts[f"{kind} bad"] += bad
        self.counts[f"{kind}: {reason}"] += 1
        self._judge(kind)

    def _judge(self, kind: str, *, final: bool = False) -> None:
        total, bad = self.counts[kind], self.counts[f"{kind} bad"]
        if bad > self.data.max_bad_fraction * total and (final or total >= FIRST_FEW):
            first = next(b for b in self.bad if b["kind"] == kind)
            raise StageError(f"{bad} of the first {total} {kind} cannot be used (first: {first['where']}: {first['reason']}); "
                             f"mend the source, or allow more with data.max_bad_fraction={bad / total:.2f}")
