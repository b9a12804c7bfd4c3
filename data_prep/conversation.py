"""The spine of the program: a conversation is a list of messages, from the raw export to the served reply.

A message is the dictionary that TRL trains on, a chat template renders and an OpenAI client sends:
`{"role": "user", "content": "…"}`, with `tool_calls` on assistant messages and `role: "tool"` for their results.
`tool_calls` have OpenAI's shape and keep `arguments` as a JSON string, because Arrow would otherwise merge
the schemas of different tools and fill in nulls.
"""

from __future__ import annotations

import gzip
import json
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

Message = dict
ROLES = {"user": "user", "customer": "user", "assistant": "assistant", "agent": "assistant", "system": "system", "tool": "tool"}


class BadRecord(ValueError):
    """A record that cannot be used. The message says what is wrong and never holds a customer's text."""


@dataclass
class Conversation:
    """One conversation. `id` and `messages` alone are enough; everything else is what the source happens to know."""

    id: str
    messages: list[Message]
    locale: str = "en"
    started_at: str | None = None
    channel: str = "chat"
    customer: dict = field(default_factory=dict)
    agents: list[dict] = field(default_factory=list)
    outcome: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: object) -> Conversation:
        """Check one JSON object and make it a conversation.

        Raises: BadRecord naming the key that is missing or wrong.
        """
        if not isinstance(record, dict):
            raise BadRecord(f"expected a JSON object, got {type(record).__name__}")
        for key in ("id", "messages"):
            if not record.get(key):
                raise BadRecord(f"lacks `{key}`")
        if not isinstance(record["messages"], list):
            raise BadRecord("`messages` is not a list")
        messages = [_message(message, index) for index, message in enumerate(record["messages"])]
        known = {key: record[key] for key in cls.__dataclass_fields__ if record.get(key) is not None}
        return cls(**{**known, "id": str(record["id"]), "messages": messages})

    def to_record(self) -> dict:
        return {key: value for key, value in asdict(self).items() if value not in (None, {}, [])}

    def sides(self) -> set[str]:
        """Which of customer (`user`) and agent (`assistant`) speak at all."""
        return {message["role"] for message in self.messages} & {"user", "assistant"}


def _message(message: object, index: int) -> Message:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadRecord(f"message {index} has no role out of {sorted(ROLES)}")
    made = {**message, "role": ROLES[message["role"]], "content": _text(message, f"message {index} has no text in `content`")}
    if (drafts := made.pop("drafts", None)) is not None:
        made["drafts"] = [_draft(draft, index) for draft in (drafts if isinstance(drafts, list) else [drafts])]
    return made


def _draft(draft: object, index: int) -> dict:
    if not isinstance(draft, dict) or draft.get("id") in (None, ""):
        raise BadRecord(f"message {index} has a draft without `id`")
    return {**draft, "id": str(draft["id"]), "content": _text(draft, f"message {index} has a draft without text in `content`")}


def _text(said: dict, otherwise: str) -> str:
    """What a message or draft says; a tool call need say nothing. Raises: BadRecord with `otherwise`."""
    content = "" if said.get("content") is None and said.get("tool_calls") else said.get("content")
    if not isinstance(content, str):
        raise BadRecord(otherwise)
    return content


KINDS = ("rating", "thumb", "edit")          # of feedback, each with its value under a key of the same name


@dataclass
class Feedback:
    """What somebody thought of a reply: a rating of 1 to 5, a thumb, or a better text (an edit)."""

    conversation_id: str
    kind: str
    rater_id: str = ""
    message_index: int | None = None
    draft_id: str | None = None
    rating: int | None = None
    thumb: str | None = None
    edit: str | None = None
    at: str | None = None

    @classmethod
    def from_record(cls, record: object) -> Feedback:
        """Check one JSON object. Raises: BadRecord; what somebody wrote where a number should be is not repeated."""
        for key in ("conversation_id", "kind"):
            if not isinstance(record, dict) or not record.get(key):
                raise BadRecord(f"feedback lacks `{key}`")
        if record["kind"] not in KINDS:
            raise BadRecord(f"the kind of a feedback is none of {', '.join(KINDS)}")
        others = [key for key in KINDS if key != record["kind"] and record.get(key) not in (None, "")]
        if others:
            raise BadRecord(f"feedback of kind {record['kind']} has a value under `{others[0]}` too: give each a record of its own")
        feedback = cls(**{key: record[key] for key in cls.__dataclass_fields__ if record.get(key) is not None and (key not in KINDS or key == record["kind"])})
        for key in ("conversation_id", "rater_id", "draft_id"):
            if (value := getattr(feedback, key)) is not None:
                setattr(feedback, key, str(value))
        if feedback.message_index is not None and type(feedback.message_index) is not int:
            raise BadRecord("`message_index` of a feedback is not a whole number")
        if feedback.kind == "rating" and (isinstance(feedback.rating, bool) or feedback.rating not in (1, 2, 3, 4, 5)):
            raise BadRecord(f"rating {feedback.rating if isinstance(feedback.rating, int | float) else 'in words'} is not on the scale 1 to 5")
        if feedback.kind == "thumb" and feedback.thumb not in ("up", "down"):
            raise BadRecord("a thumb is `up` or `down`")
        if feedback.kind == "edit" and not isinstance(feedback.edit, str):
            raise BadRecord("an edit lacks the better text in `edit`")
        return feedback

    def to_record(self) -> dict:
        return {key: value for key, value in asdict(self).items() if value is not None}


def tool_call(name: str, arguments: dict, call_id: str = "call_0") -> dict:
    """One tool call in OpenAI's shape (https://platform.openai.com/docs/api-reference/chat)."""
    return {"id": call_id, "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}


def chat_message(message: Message) -> Message:
    """The message without what only the archive knows (author, time, drafts): what a model is shown."""
    return {key: message[key] for key in ("role", "content", "tool_calls", "tool_call_id") if message.get(key) is not None}


def truncate(messages: list[Message], max_tokens: int, count_tokens: Callable[[list[Message]], int]) -> list[Message]:
    """Keep the system message and the newest turns that fit in `max_tokens`; cut only before a customer's turn.

    Training, evaluation and serving all use this one function, so that a model never sees in production a cut
    that it did not see in training. The newest turn is always kept, even where it alone is too long.
    """
    if count_tokens(messages) <= max_tokens:
        return messages
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    rest = messages[len(system):]
    starts = [i for i, m in enumerate(rest) if m["role"] == "user" and (i == 0 or rest[i - 1]["role"] != "user")]
    if not starts:
        return messages
    kept = bisect_left(starts[:-1], True, key=lambda start: count_tokens(system + rest[start:]) <= max_tokens)           # the more goes, the fewer tokens are left
    return system + rest[starts[kept]:]


def read_jsonl(path: str | Path) -> Iterator[tuple[int, object]]:
    """Yield (line number from 1, parsed JSON or None where the line is not JSON in UTF-8) of a `.jsonl` or `.jsonl.gz`."""
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError:
                yield number, None


def write_jsonl(path: str | Path, records: Iterable[dict]) -> int:
    """Write records one a line, whole or not at all (a temporary file beside it is renamed). Returns the count."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count, partial = 0, path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")
            count += 1
    os.replace(partial, path)
    return count


def write_json(path: str | Path, value: object) -> None:
    """Write one JSON file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)
