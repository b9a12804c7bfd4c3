"""The wire: what a request may hold and what a response looks like (OpenAI's chat API, as vLLM speaks it)."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_prep.conversation import Message
from serve.engine import Completion, Sampling


class FunctionCall(BaseModel):
    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(BaseModel):
    """As OpenAI sends it; clients that leave out the id, or send arguments as an object, are understood."""

    id: str = "call_0"
    type: Literal["function"] = "function"
    function: FunctionCall

    def plain(self) -> dict:
        arguments = self.function.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)}}


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def plain(self) -> Message:
        """The message as the rest of the program knows it: text content only."""
        content = self.content if isinstance(self.content, str) else "".join(part.get("text") or "" for part in self.content or [])
        message: Message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatCompletionRequest(BaseModel):
    """Unknown fields are ignored, as OpenAI's and vLLM's servers do."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    n: Literal[1] = 1

    def sampling(self, most: int) -> Sampling:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(self.temperature, self.top_p, min(self.max_completion_tokens or self.max_tokens or most, most), self.seed, stop)


def new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def usage(completion: Completion) -> dict:
    return {"prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.completion_tokens,
            "total_tokens": completion.prompt_tokens + completion.completion_tokens}


def response(model: str, message: Message, completion: Completion) -> dict:
    reason = "tool_calls" if message.get("tool_calls") else completion.finish_reason
    return {"id": new_id(), "object": "chat.completion", "created": int(time.time()), "model": model, "usage": usage(completion),
            "choices": [{"index": 0, "message": {**message, "content": message["content"] or None}, "finish_reason": reason, "logprobs": None}]}


def chunk(identity: str, model: str, delta: dict | None, *, finish_reason: str | None = None, counted: dict | None = None) -> dict:
    """One event of a stream. The one that carries usage has no choices (OpenAI's stream_options.include_usage)."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}]
    event = {"id": identity, "object": "chat.completion.chunk", "created": int(time.time()), "model": model, "choices": choices}
    return event | ({"usage": counted} if counted else {})


def error(message: str, kind: str, code: int, param: str | None = None) -> dict:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
