"""What an engine is. Two doors lead to one: evaluation asks for whole replies, the endpoint for tokens as they are made.

    Engine          conversations in, replies out, a batch at a time (`embedded.py`: transformers, in this process)
    TokenEngine     token ids in, token ids out, many requests at once (`child.py`: a process of its own; `upstream.py`: a running vLLM)
    Batcher         what runs in such a child: `openvino.py`, fast, and `exact.py`, which can do all and is what the other is held to
"""

from __future__ import annotations

import time
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from data_prep.conversation import Message


class EngineError(RuntimeError):
    """An engine that cannot answer now. Its words are for clients: they hold nothing of what was asked."""


class Impossible(EngineError):
    """A job that no engine of this kind can do, now or later: the client's to change."""


def where(problem: Exception) -> dict:
    """An error for the log: its kind and its place, and none of its words, which may be a customer's."""
    at = traceback.extract_tb(problem.__traceback__)[-1]
    return {"error": type(problem).__name__, "at": f"{at.filename.rpartition('/')[2]}:{at.lineno}"}


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn; names and meanings are vLLM's. temperature 0 is greedy; seed makes a draw repeatable."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int = 0                        # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None           # so many of the likeliest tokens beside the one that was drawn
    prompt_logprobs: int | None = None
    grammar: tuple[str, str] | None = None         # ("json", a schema), ("regex", an expression), ("choice", a JSON list of strings), ("calls", a JSON list of {"begin", "schema", "end"}), ("grammar", EBNF), ("structural_tag", vLLM's JSON)


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


@dataclass(frozen=True)
class Job:
    """One reply to make. prompt: token ids; max_tokens of the sampling fit behind it. adapter: the LoRA adapter's name, or None for the model itself. priority: lower numbers go first."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None
    priority: int = 0


class Likely(NamedTuple):
    """A token's log probability, and its rank in the whole vocabulary, 1 for the likeliest; 0 where that is not known."""

    logprob: float
    rank: int = 0


Alternatives = dict[int, Likely]          # by token id: the one that was drawn first, then the likeliest


@dataclass(frozen=True)
class Step:
    """What a job has made since the last one. finish: "stop", "length" or "error", in the last step. A token that ended it is among `tokens`.
    logprobs: one for each token, where they were asked for; prompt_logprobs: in the first step, one for each token of the prompt, None for the first. failed: of an error, for the log."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[Alternatives, ...] = ()
    finish: str | None = None
    prompt_logprobs: tuple[Alternatives | None, ...] | None = None
    failed: dict | None = None


@dataclass
class State:
    """How an engine is. progressed: `time.monotonic()` of the last sign of life, which comes every few seconds from one that has nothing to do."""

    ready: bool = False
    progressed: float = 0.0
    why: str = "starting"
    facts: dict = field(default_factory=dict)

    def silent(self) -> float:
        """Seconds since the last sign of life of an engine that is thought to be ready."""
        return time.monotonic() - self.progressed if self.ready else 0.0


class TokenEngine(Protocol):
    state: State

    async def start(self) -> None: ...

    def run(self, job: Job) -> AsyncIterator[Step]:
        """The job's steps as they are made; closing the iterator frees its place. Raises: EngineError."""

    async def close(self) -> None: ...


class Batcher(Protocol):
    def add(self, job: Job) -> None:
        """Raises: ValueError, in words for clients, where it cannot be done (a schema that is none)."""

    def cancel(self, job_id: str) -> None: ...

    def busy(self) -> bool: ...

    def step(self) -> dict[str, Step]:
        """A token or more for every running job, by job id."""
