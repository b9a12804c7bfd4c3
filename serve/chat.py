"""A chat request from the wire to its choices and back: `/v1/chat/completions`."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from data_prep.conversation import Message
from data_prep.hermes import CLOSE, OPEN
from serve.engine import Alternatives, Sampling
from serve.handoff import guarded
from serve.protocol import ChatRequest, NamedTool, Refused, chat_logprobs, prompt_logprobs, usage, whole
from serve.replies import Piece, Release
from serve.service import Service, at_leisure, merged, together

LONG = 8192           # characters of a conversation which the guard reads in no time
SEEN = 65536          # characters before what the customer wrote last that the guard looks at, whatever the model holds
RESERVED = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)          # what no client sets in the template's name


@dataclass
class Out:
    """Something of one choice that goes out at once."""

    index: int
    content: str = ""
    calls: list[dict] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Alternatives] = field(default_factory=list)
    finish: str | None = None
    stop_reason: str | int | None = None
    made: int = 0                      # tokens of this choice so far
    prompt_logprobs: tuple[Alternatives | None, ...] | None = None


@dataclass
class Chat:
    """A request that can be made. messages: what the guard looks at, without what the client has begun of the reply itself, `begun`. prompt: token ids. is_forced: its reply must be a tool call;
    is_named: of the one that it names."""

    service: Service
    request: ChatRequest
    identity: str
    model: str
    messages: list[Message]
    begun: str
    prompt: list[int]
    sampling: Sampling
    is_forced: bool
    is_named: bool

    @property
    def top(self) -> int:
        return self.request.top_logprobs or 0

    async def choice(self, index: int) -> AsyncIterator[Out]:
        """One choice as it may go out, up to the one with a `finish`. With a guard its tokens go out with the last, where all that they say has gone out."""
        policy, held = self.service.policy, Out(index)
        guard = (lambda reply: guarded(self.messages, reply, policy)) if policy else None
        release = Release(bool(self.request.tools) and self.request.tool_choice != "none", guard, self.begun if policy else "", self.request.parallel_tool_calls is False)
        is_short = not policy or sum(len(message["content"]) for message in self.messages) <= LONG         # the guard reads all of it
        out = Out(index)
        made = self.service.choice(self.request, f"{self.identity}-{index}", self.model, self.prompt, self.sampling, index, words_only=bool(policy))
        try:
            async for piece in made:
                out = self._with(out, piece)
                out.content += await at_leisure(is_short, release.feed, piece.text)
                if policy:
                    held.tokens += out.tokens
                    held.logprobs += out.logprobs
                    out.tokens, out.logprobs = [], []
                if release.replaced is not None:
                    out.finish = "stop"
                if out.finish:
                    break
                if out.content:
                    yield out
                    out = Out(index, made=out.made)
        finally:
            await made.aclose()
        rest, out.calls = await at_leisure(is_short, release.end)
        out.content += rest
        if policy and not release.is_changed and (self.request.return_token_ids or held.logprobs):
            kept = self.service.text.within(held.tokens, len(release.text))         # a stop string may have cut within a token
            out.tokens, out.logprobs = held.tokens[:kept], held.logprobs[:kept]
        if release.replaced is not None:
            out.stop_reason, out.finish = None, "stop"
        if out.calls:
            out.finish = "stop" if self.is_named and release.replaced is None else "tool_calls"
        yield out

    @staticmethod
    def _with(out: Out, piece: Piece) -> Out:
        return replace(out, tokens=out.tokens + piece.tokens, logprobs=out.logprobs + piece.logprobs, finish=piece.finish, stop_reason=piece.stop_reason, made=out.made + len(piece.tokens), prompt_logprobs=piece.prompt_logprobs or out.prompt_logprobs)

    def _logprobs(self, out: Out) -> dict | None:
        return chat_logprobs(self.service.text, out.tokens, out.logprobs, self.top, self.request.return_tokens_as_token_ids) if out.logprobs else None

    async def response(self) -> dict:
        outs = await together([self._joined(index) for index in range(self.request.n or 1)])
        ids = self.request.return_token_ids
        choices = [{"index": out.index, "message": {"role": "assistant", "content": out.content or (None if out.calls and not self.is_forced else ""), "refusal": None, "annotations": None, "audio": None, "function_call": None, **({"tool_calls": self._calls(out)} if out.calls else {}), "reasoning": None},
                    "logprobs": self._logprobs(out), "finish_reason": out.finish, "stop_reason": out.stop_reason, "token_ids": out.tokens if ids else None, "routed_experts": None} for out in outs]
        return whole(self.identity, "chat.completion", self.model, choices, len(self.prompt), sum(out.made for out in outs), system_fingerprint=self.service.fingerprint, prompt_logprobs=prompt_logprobs(self.service.text, outs[0].prompt_logprobs),
                     prompt_token_ids=self.prompt if ids else None, prompt_text=None)

    async def _joined(self, index: int) -> Out:
        joined = Out(index)
        async for out in self.choice(index):
            joined = replace(out, content=joined.content + out.content, tokens=joined.tokens + out.tokens, logprobs=joined.logprobs + out.logprobs, prompt_logprobs=joined.prompt_logprobs or out.prompt_logprobs)
        return joined

    def _calls(self, out: Out) -> list[dict]:
        return [{"id": f"chatcmpl-tool-{self.identity[-16:]}-{out.index}-{place}", "type": "function", "function": call["function"]} for place, call in enumerate(out.calls)]

    async def events(self) -> AsyncIterator[dict]:
        """The chunks of a stream, without [DONE]. Raises: EngineError."""
        (counted, always), count = self.request.counts, self.request.n or 1
        head = {"id": self.identity, "object": "chat.completion.chunk", "created": int(time.time()), "model": self.model}
        made = [0] * count
        for index in range(count):
            yield {**head, "choices": [{"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}], **({"usage": {**usage(len(self.prompt), 0), "completion_tokens_details": None}} if always else {}), "prompt_token_ids": None, "prompt_text": None}
        async for out in merged([self.choice(index) for index in range(count)]):
            made[out.index] = out.made
            deltas = [{"content": out.content}] if out.content else []
            for place, call in enumerate(self._calls(out)):         # a name, then its arguments, as vLLM sends them
                deltas += [{"content": None, "tool_calls": [{"index": place, "id": call["id"], "type": "function", "function": {"name": call["function"]["name"]}}]}, {"content": None, "tool_calls": [{"index": place, "function": {"arguments": call["function"]["arguments"]}}]}]
            if out.calls or not deltas:
                deltas.append({})
            for place, delta in enumerate(deltas):
                is_last = place == len(deltas) - 1
                one = {"index": out.index, "delta": delta, "logprobs": self._logprobs(out) if place == 0 else None, "finish_reason": out.finish if is_last else None, **({"stop_reason": out.stop_reason} if is_last and out.finish else {}),
                       "token_ids": out.tokens if place == 0 and self.request.return_token_ids else None}
                yield {**head, "choices": [one], **({"usage": {**usage(len(self.prompt), out.made), "completion_tokens_details": None}} if always else {}), **({"system_fingerprint": self.service.fingerprint} if is_last and out.finish and not counted else {})}
        if counted:
            yield {**head, "choices": [], "usage": usage(len(self.prompt), sum(made)), "system_fingerprint": self.service.fingerprint}


def seen(messages: list[Message], goes_on: bool) -> tuple[list[Message], str]:
    """(the conversation that the guard looks at, what the client has begun of the reply). Whatever a client puts last in the assistant's name is a part of what it says next: two halves of a promise are one."""
    system, rest = ([messages[0]], messages[1:]) if messages[0]["role"] == "system" else ([], messages)
    first = len(rest)
    while first and rest[first - 1]["role"] == "assistant":
        first -= 1
    begun = [message["content"] for message in rest[first:] if message["content"]]
    rest = rest[:first] + [{**message, "content": ""} for message in rest[first:] if message.get("tool_calls")]
    oldest, left = max((place for place, message in enumerate(rest) if message["role"] == "assistant" and message["content"]), default=-1) + 1, SEEN
    while oldest and (left := left - len(rest[oldest - 1]["content"])) >= 0:
        oldest -= 1
    return system + rest[oldest:], "\n".join(begun) + ("" if goes_on or not begun else "\n")


def extras(request: ChatRequest) -> dict:
    """What the template is told beside the messages (`enable_thinking`). Raises: Refused: text would be a way around the control tokens' neutralising."""
    given = request.chat_template_kwargs or {}
    if odd := next((name for name, value in given.items() if name in RESERVED or not isinstance(value, bool | int | float | None)), None):
        raise Refused(f"chat_template_kwargs.{odd[:40]} cannot be set: only switches and numbers that the template itself knows", "chat_template_kwargs")
    return given


def chat(service: Service, request: ChatRequest, identity: str) -> Chat:
    """Raises: Refused."""
    model, text = service.model(request.model), service.text
    if not request.messages:
        raise Refused("Cannot apply chat template to an empty conversation. Provide at least one message.")
    if request.chat_template is not None:
        raise Refused("Chat template is passed with request, but --trust-request-chat-template is not set. Refused request with untrusted chat template.")
    if request.top_logprobs and not request.logprobs:
        raise Refused("when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)", "top_logprobs")
    if service.policy and (request.top_logprobs or request.prompt_logprobs):
        raise Refused("what else the model might have said is not told where a guard stands before it: 0 of `top_logprobs` and `prompt_logprobs`", "top_logprobs" if request.top_logprobs else "prompt_logprobs")
    if request.tool_choice not in (None, "none") and not request.tools:
        raise Refused("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if request.continue_final_message and "add_generation_prompt" in request.model_fields_set and request.add_generation_prompt:
        raise Refused("Cannot set both `continue_final_message` and `add_generation_prompt` to True.", kind="Bad Request")
    messages = [message.plain() for message in request.messages]
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or []] if request.tool_choice != "none" else []
    asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    service.check_length(asked)
    template = {**extras(request), "add_generation_prompt": request.add_generation_prompt is not False and not request.continue_final_message, "continue_final_message": bool(request.continue_final_message)}
    prompt = text.chat(messages, min(asked or text.max_tokens // 4, text.max_tokens // 2), tools or None, **template)
    most = service.room(len(prompt), asked)
    sampling = request.checked((request.top_logprobs or 0) if request.logprobs else None, most, service.vocabulary, service.defaults)
    is_named = isinstance(request.tool_choice, NamedTool)
    is_forced = is_named or request.tool_choice == "required"
    if is_forced:
        if sampling.grammar:
            raise Refused("a reply that must be a tool call cannot have another structure too", "tool_choice")
        asked_for = [tool.function for tool in request.tools if not is_named or tool.function.name == request.tool_choice.function.name]
        if not asked_for:
            raise Refused(f"tool_choice names {request.tool_choice.function.name[:60]!r}, which is not among the tools", "tool_choice")
        sampling = replace(sampling, grammar=("calls", json.dumps([{"begin": OPEN + text.gap + f'{{"name": {json.dumps(tool.name)}, "arguments": ', "schema": tool.parameters or {"type": "object"}, "end": "}" + text.gap + CLOSE} for tool in asked_for])))
    service.queue.admit(request.n or 1)
    return Chat(service, request, identity, model, *seen(messages, bool(request.continue_final_message)), prompt, sampling, is_forced, is_named)

