"""What agents did outside the chat, put where it happened: `{"conversation_id", "at", "tool", "arguments", "result"}`.

An action becomes an assistant message with the tool call and a tool message with the result. It stands behind every
message that is not later than it, but before what an agent wrote in the same second: they act, then say so. A message without a time
has the time of the one before it; where none has a time, the actions come last, in their own order.
"""

from __future__ import annotations

import json

from data_prep.conversation import BadRecord, Message, tool_call
from data_prep.ingest.files import moment, stamp


def checked(record: object) -> dict:
    """One action, its time as a moment. Raises: BadRecord naming what is missing."""
    if not isinstance(record, dict):
        raise BadRecord(f"expected a JSON object, got {type(record).__name__}")
    for key in ("conversation_id", "tool"):
        if not record.get(key):
            raise BadRecord(f"an action lacks `{key}`")
    if moment(record.get("at")) is None:
        raise BadRecord("an action has no time in `at`")
    if not isinstance(record.get("arguments") or {}, dict):
        raise BadRecord("`arguments` of an action is not a JSON object")
    return {**record, "conversation_id": str(record["conversation_id"]), "moment": moment(record["at"])}


def merge(messages: list[Message], actions: list[dict]) -> tuple[list[Message], list[int]]:
    """(messages and actions by time, the new index of each message)."""
    merged, places = [], []
    waiting = sorted(actions, key=lambda action: action["moment"])
    count = 0
    for message in messages:
        at = moment(message.get("at"))
        while at and waiting and (waiting[0]["moment"] < at or (waiting[0]["moment"] == at and message["role"] == "assistant")):
            count += 1
            merged += _messages(waiting.pop(0), count)
        places.append(len(merged))
        merged.append(message)
    for number, action in enumerate(waiting, count + 1):
        merged += _messages(action, number)
    return merged, places


def _messages(action: dict, number: int) -> list[Message]:
    call, at, result = f"action_{number}", stamp(action["at"]), action.get("result")
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    return [{"role": "assistant", "content": "", "at": at, "tool_calls": [tool_call(str(action["tool"]), action.get("arguments") or {}, call)]},
            {"role": "tool", "tool_call_id": call, "at": at, "content": text}]
