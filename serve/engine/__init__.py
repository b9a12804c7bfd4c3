"""What an engine is: messages in, a reply out. Evaluation, verification and the endpoint all speak to this protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from data_prep.conversation import Message


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn. temperature 0 is greedy; seed makes a draw repeatable."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A reply as text, tool calls still in it. finish_reason is "stop" or "length"; counts are in tokens."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Engine(Protocol):
    def generate(self, conversations: list[list[Message]], sampling: Sampling) -> list[Completion]:
        """One reply per conversation, in order. A conversation that is too long is cut by `conversation.truncate`."""

    def stream(self, messages: list[Message], sampling: Sampling) -> Iterator[str | Completion]:
        """The reply's text in pieces as it is made, and last the whole Completion."""
