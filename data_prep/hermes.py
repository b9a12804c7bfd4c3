"""Tool calls as text, Hermes style: `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (what vLLM's hermes parser reads)."""

from __future__ import annotations

import json
import re

from data_prep.conversation import Message, tool_call

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_call = re.compile(rf"{OPEN}(.*?){CLOSE}", re.DOTALL)


def parse_reply(text: str) -> Message:
    """The assistant message that a reply's text stands for. A tool call that is not valid JSON stays text."""
    calls = []
    for match in _call.finditer(text):
        try:
            body = json.loads(match.group(1))
            if not isinstance(body["name"], str):
                raise TypeError
            calls.append(tool_call(body["name"], body["arguments"], f"call_{len(calls)}"))
        except (ValueError, KeyError, TypeError):
            return {"role": "assistant", "content": text.strip()}
    message: Message = {"role": "assistant", "content": _call.sub("", text).strip()}
    return message | {"tool_calls": calls} if calls else message
