"""From an engine's tokens to what a client reads: text with its stop strings found, and of a chat only what may be said, as soon as it may."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from data_prep.conversation import Message
from data_prep.hermes import OPEN, parse_reply
from serve.engine import Alternatives, EngineError, Job, TokenEngine
from serve.handoff import Guarded
from serve.text import Reader, Text

_sentence_end = re.compile(r"[.!?。！？؟…][\"')\]»”’]*\s+|[。！？]|\n")


@dataclass
class Piece:
    """Some of a reply. text: what the tokens add; finish: "stop", "length" or None; stop_reason: the stop string or token id that ended it."""

    text: str
    tokens: list[int]
    logprobs: list[Alternatives] = field(default_factory=list)
    finish: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[Alternatives | None, ...] | None = None


async def pieces(engine: TokenEngine, job: Job, text: Text, *, skip_special: bool = True, keep_stop: bool = False) -> AsyncIterator[Piece]:
    """A job's reply as it is made; the last piece has a `finish`. What could be the beginning of a stop string waits for the rest. Raises: EngineError."""
    reader, stops = Reader(text, skip_special), job.sampling.stop
    wait = max((len(stop) for stop in stops), default=1) - 1
    held, made = "", 0
    steps = engine.run(job)
    try:
        async for step in steps:
            if step.finish == "error":
                raise EngineError("the engine ended before the reply was whole")
            new = "".join(map(reader.read, step.tokens)) + (reader.rest() if step.finish else "")
            held, made = held + new, made + len(step.tokens)
            logprobs, tokens = list(step.logprobs), list(step.tokens)
            found = min(((place, -len(stop), stop) for stop in stops if (place := held.find(stop)) >= 0), default=None) if made > job.sampling.min_tokens else None
            if found:
                place, _, stop = found
                yield Piece(held[:place + len(stop) * keep_stop], tokens, logprobs, "stop", stop, step.prompt_logprobs)
                return
            ready = len(held) if step.finish else max(0, len(held) - wait)
            stopped = step.tokens[-1] if step.finish == "stop" and step.tokens and step.tokens[-1] in job.sampling.stop_token_ids else None
            yield Piece(held[:ready], tokens, logprobs, step.finish, stopped, step.prompt_logprobs)
            held = held[ready:]
    finally:
        await steps.aclose()


def releasable(text: str) -> str:
    """The part of a reply before anything that is, or may become, a tool call."""
    cut = text.find(OPEN)
    if cut < 0:
        cut = next((len(text) - length for length in range(min(len(OPEN) - 1, len(text)), 0, -1) if OPEN.startswith(text[-length:])), len(text))
    return text[:cut]


class Release:
    """What of a reply goes out, and when. with_tools: the client knows tools, so calls are parsed; else they stay text, as in vLLM. begun: what of the reply the client has written itself.

    With a guard a sentence goes out when the guard has let the reply up to there pass, and the rest when it has seen it all. Where it stops something, what
    it says instead follows what has gone out already; `is_changed` then, and where it completes a handoff. What a call tells a tool is no word to a customer: of it
    the guard looks at what would be done.
    """

    def __init__(self, with_tools: bool, guard: Callable[[Message], Guarded] | None, begun: str = ""):
        self.with_tools, self.guard = with_tools, guard
        self.text, self.sent, self.replaced, self.is_changed = begun, len(begun), None, False

    def feed(self, new: str) -> str:
        """What may go out now that this much more is known; empty once `replaced` is set, and then nothing more need be made."""
        self.text += new
        if not self.with_tools and not self.guard:
            return self._out(len(self.text))
        free = releasable(self.text)
        if not self.guard:
            return self._out(len(free.rstrip()))
        if (end := max((m.end() for m in _sentence_end.finditer(free)), default=0)) <= self.sent:
            return ""
        seen = self.guard({"role": "assistant", "content": free[:end].strip()})
        if seen.reason:
            self.replaced = seen.reply
            return ""
        return self._out(len(free[:end].rstrip()))

    def _out(self, end: int) -> str:
        start, self.sent = self.sent, max(self.sent, end)
        return self.text[start:self.sent]

    def end(self) -> tuple[str, list[dict]]:
        """(the rest of the words, the tool calls) of the whole reply, or of what stands in its place."""
        reply = whole = parse_reply(self.text)
        if self.guard and self.replaced is None:
            if OPEN in self.text and not whole.get("tool_calls"):           # a call that was cut off or cannot be read is nothing to say to a customer
                self.text, self.is_changed = self.text[:self.text.index(OPEN)].rstrip(), True
                reply = whole = parse_reply(self.text)
            reply, reason = self.guard(whole)
            if not reason and whole.get("tool_calls") and not self.with_tools and reply == whole:           # it goes out as text
                reply, reason = self.guard({"role": "assistant", "content": self.text})
            self.replaced, self.is_changed = (reply if reason else None), self.is_changed or reply != whole
        if self.replaced is not None:
            self.is_changed = True
            return (" " if self.sent else "") + self.replaced["content"], self.replaced.get("tool_calls") or []
        if reply.get("tool_calls") and (self.with_tools or self.is_changed):         # a handoff that the guard has completed is seen by every client
            return self._after(reply["content"]), reply["tool_calls"]
        return self._out(len(self.text)), []

    def _after(self, content: str) -> str:
        """What of a reply's words has not gone out yet."""
        said = self.text[:self.sent].strip()
        return content[len(said):] if content.startswith(said) else f" {content}"
