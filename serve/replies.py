"""From an engine's tokens to what a client reads: text with its stop strings found, and of a chat only what may be said, as soon as it may."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from data_prep.conversation import Message
from data_prep.hermes import CLOSE, OPEN, parse_reply
from serve.engine import Alternatives, EngineError, Job, TokenEngine
from serve.handoff import TRANSFER, Guarded
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
    """What of a reply goes out, and when. with_tools: the client knows tools, so calls are parsed; else they stay text, as in vLLM. one_call: of several only one is kept.
    begun: what of the reply the client has written itself, which the guard reads before the rest.

    With a guard a sentence goes out when the guard has let the reply up to there pass, and the rest when it has seen it all. Where it stops something, what it says instead
    (`replaced`) follows what has gone out already. `is_changed` where the client does not get just what the model made. What a call tells a tool is no word to a customer: of it the guard
    looks at what would be done.
    """

    def __init__(self, with_tools: bool, guard: Callable[[Message], Guarded] | None, begun: str = "", one_call: bool = False):
        self.with_tools, self.guard, self.begun, self.one_call = with_tools, guard, begun, one_call
        self.text, self.sent, self.replaced, self.is_changed, self.hands_over = "", 0, None, False, False

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
        self._judge(free[:end])
        return "" if self.replaced else self._out(len(free[:end].rstrip()))

    def _judge(self, text: str, **calls) -> Message:
        """The reply that the guard lets pass, with what the client has begun."""
        given = {"role": "assistant", "content": (self.begun + text).strip(), **calls}
        reply, reason = self.guard(given)
        if reason:
            self.replaced, self.is_changed = reply, True
        self.hands_over = self.hands_over or (not reason and reply != given)
        return reply

    def _out(self, end: int) -> str:
        start, self.sent = self.sent, max(self.sent, end)
        return self.text[start:self.sent]

    def end(self) -> tuple[str, list[dict]]:
        """(the rest of the words, the tool calls) of the whole reply, or of what stands in its place."""
        whole = parse_reply(self.text)
        if self.guard and not whole.get("tool_calls") and (OPEN in self.text or CLOSE in self.text):           # a call that was cut off or cannot be read is nothing to say to a customer
            self.text, self.is_changed = self.text[:self.text.index(OPEN)].rstrip() if OPEN in self.text.partition(CLOSE)[0] else "", True
            whole = parse_reply(self.text)
        if self.with_tools and self.one_call and len(whole.get("tool_calls") or []) > 1:
            whole, self.is_changed = {**whole, "tool_calls": sorted(whole["tool_calls"], key=lambda call: call["function"]["name"] != TRANSFER)[:1]}, True           # a handoff rather than anything else
        if self.guard and self.replaced is None:
            whole = self._let_pass(whole)
        if self.replaced is not None:
            follows = self.sent or (self.begun and not self.begun.endswith("\n"))
            return (" " if follows else "") + self.replaced["content"], self.replaced.get("tool_calls") or []
        if whole.get("tool_calls") and (self.with_tools or self.hands_over):         # a handoff that the guard has completed is seen by every client
            return self._after(whole["content"]), whole["tool_calls"]
        return self._out(len(self.text)), []

    def _let_pass(self, whole: Message) -> Message:
        """The whole reply as it goes out, unless the guard replaces it."""
        calls = {"tool_calls": whole["tool_calls"]} if whole.get("tool_calls") else {}
        before = self.text[:len(self.text) - len(self.text.lstrip())]
        reply = self._judge(before + whole["content"], **calls)
        if self.hands_over:
            self.is_changed = True
            return {**reply, "content": whole["content"] or ("" if self.begun.strip() else reply["content"])}
        if calls and not self.with_tools and self.replaced is None:          # nobody there makes calls, and no customer is to read one: whoever needs more than words goes to a person
            self.text, self.is_changed, nothing = self.text[:self.text.index(OPEN)].rstrip(), True, {"role": "assistant", "content": ""}
            reply, reason = self.guard(nothing)
            self.replaced = reply if reason else None
            return nothing
        return whole

    def _after(self, content: str) -> str:
        """What of a reply's words has not gone out yet."""
        said = self.text[:self.sent].strip()
        return content[len(said):] if content.startswith(said) else f" {content}"
