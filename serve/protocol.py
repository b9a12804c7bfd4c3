"""The wire: what a request may hold and what an answer looks like, field by field as vLLM 0.32 speaks OpenAI's API.

Where vLLM is unsafe this is stricter: fields that it dropped and ignores without a word (`guided_json`) are refused here.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from data_prep.conversation import Message
from serve.engine import Alternatives, Sampling
from serve.engine.grammar import ebnf
from serve.text import Text

STOPS, LOGPROBS, CHOICES, PROMPTS, BIASES = 4, 20, 16, 1024, 1024           # at most, of one request
DROPPED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend")
GREEDY, COLDEST, HOTTEST = 1e-5, 1e-2, 100.0           # temperatures: greedy below the first, and no nearer to 0 nor higher than the others
LEAST = 1e-6                           # of top_p: the likeliest token alone
SEED = 2 ** 63                         # one more than the greatest


T = TypeVar("T")
Many = Annotated[list[T], Field(fail_fast=True)]         # the first mistake is told: a hundred thousand of them would take seconds to find


class Refused(Exception):
    """A request that cannot be served as it is: what is wrong, for the client."""

    def __init__(self, words: str, param: str | None = None, status: int = 400, kind: str = "BadRequestError"):
        super().__init__(words)
        self.words, self.param, self.status, self.kind = words, param, status, kind


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
        """The message as the rest of the program knows it: text content only. Raises: Refused where it holds something else."""
        parts = [{"type": "text", "text": self.content}] if isinstance(self.content, str) else self.content or []
        if odd := next((part for part in parts if part.get("type", "text") != "text" or not isinstance(part.get("text"), str | None)), None):
            raise Refused(f"content of the type {str(odd.get('type'))[:40]!r} is not understood: this model reads text", "messages")
        message: Message = {"role": "system" if self.role == "developer" else self.role, "content": "".join(part.get("text") or "" for part in parts)}
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message


class StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Function(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    type: Literal["function"] = "function"
    function: Function


class NamedFunction(BaseModel):
    name: str


class NamedTool(BaseModel):
    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True)
    name: str = "schema"
    held: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True)
    held: str | dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: Many[str] | None = None
    grammar: str | None = None
    structural_tag: str | None = None


class Drawn(BaseModel):
    """What chats and completions have in common."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    n: int | None = 1
    stop: str | Many[str] | None = None
    stop_token_ids: Many[int] | None = None
    include_stop_str_in_output: bool | None = False
    skip_special_tokens: bool | None = True
    logit_bias: dict[str, float] | None = None
    prompt_logprobs: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: int | None = 0
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = False
    user: str | None = None

    @property
    def counts(self) -> tuple[bool, bool]:
        """Whether a stream ends with the usage, and whether every chunk has it."""
        options = self.stream_options
        return bool(options and options.include_usage), bool(options and options.include_usage and options.continuous_usage_stats)

    def checked(self, logprobs: int | None, most: int, vocabulary: int, defaults: dict) -> Sampling:
        """How its reply is drawn. most: tokens that fit behind the prompt. Raises: Refused, in vLLM's words where it has some."""
        def value(name: str, otherwise):
            given = getattr(self, name)
            return defaults.get(name, otherwise) if given is None else given

        temperature, top_p, min_p = value("temperature", 1.0), value("top_p", 1.0), value("min_p", 0.0)
        repetition = value("repetition_penalty", 1.0)
        stops, top_k = [self.stop] if isinstance(self.stop, str) else self.stop or [], value("top_k", 0)
        if dropped := next((name for name in DROPPED if (self.model_extra or {}).get(name) is not None), None):
            raise Refused(f"{dropped} was removed from vLLM and would be ignored without a word: use structured_outputs", dropped)
        for holds, words, name, given in (
                (0 <= temperature <= 1e6, "temperature must be non-negative", "temperature", temperature), (0 < top_p <= 1, "top_p must be in (0, 1]", "top_p", top_p), (0 <= min_p <= 1, "min_p must be in [0, 1]", "min_p", min_p),
                (-2 <= value("presence_penalty", 0.0) <= 2, "presence_penalty must be in [-2, 2]", "presence_penalty", self.presence_penalty), (-2 <= value("frequency_penalty", 0.0) <= 2, "frequency_penalty must be in [-2, 2]", "frequency_penalty", self.frequency_penalty),
                (0 < repetition <= 1e6, "repetition_penalty must be greater than zero", "repetition_penalty", repetition), (top_k >= -1, "top_k must be 0 (disable), or at least 1", "top_k", top_k),
                (value("min_tokens", 0) >= 0, "min_tokens must be greater than or equal to 0", "min_tokens", self.min_tokens), (self.seed is None or -SEED <= self.seed < SEED, "seed must fit in 64 bits", "seed", self.seed)):
            if not holds:
                raise Refused(f"{words}, got {given}. (parameter={name}, value={given})", name) if name in ("temperature", "top_p", "seed") else Refused(f"{words}, got {given}.")
        if not 1 <= value("n", 1) <= CHOICES:
            raise Refused(f"n must be at least 1, got {self.n}." if self.n < 1 else f"n must be at most {CHOICES}, got {self.n}.")
        if any(not stop for stop in stops):
            raise Refused("stop cannot contain an empty string.")
        if len(stops) > STOPS:
            raise Refused(f"stop: List should have at most {STOPS} items after validation, not {len(stops)}", "body.stop", kind="Bad Request")
        if self.stream_options and not self.stream:
            raise Refused("Stream options can only be defined when `stream=True`. (parameter=stream_options)", "stream_options")
        for name, count in (("logprobs", logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None and not 0 <= count <= LOGPROBS:
                raise Refused(f"Requested {'sample' if name == 'logprobs' else 'prompt'} logprobs of {count}, which is greater than max allowed: {LOGPROBS} (parameter={name}, value={count})", name)
        if self.stream and self.prompt_logprobs is not None:
            raise Refused("`prompt_logprobs` are not available when `stream=True`. (parameter=prompt_logprobs)", "prompt_logprobs")
        if value("min_tokens", 0) > most:
            raise Refused(f"min_tokens must be less than or equal to max_tokens={most}, got {self.min_tokens}. (parameter=min_tokens, value={self.min_tokens})", "min_tokens")
        ids = self.stop_token_ids or []
        if any(not 0 <= token < vocabulary for token in ids):
            raise Refused(f"stop_token_ids must be token ids below {vocabulary}", "stop_token_ids")
        temperature = 0.0 if temperature < GREEDY else min(max(temperature, COLDEST), HOTTEST)            # beyond these numbers overflow, and vLLM has these bounds too
        repetition, top_p, top_k = min(max(repetition, COLDEST), HOTTEST), max(top_p, LEAST), min(max(0, top_k), vocabulary)
        grammar = self.grammar()
        try:
            if grammar:
                ebnf(*grammar)
        except ValueError as problem:
            raise Refused(str(problem), "structured_outputs") from None
        return Sampling(temperature=temperature, top_p=top_p, max_tokens=most, seed=self.seed, stop=tuple(stops), top_k=top_k, min_p=min_p, presence_penalty=value("presence_penalty", 0.0), frequency_penalty=value("frequency_penalty", 0.0),
                        repetition_penalty=repetition, min_tokens=value("min_tokens", 0), ignore_eos=bool(self.ignore_eos), stop_token_ids=tuple(ids), logit_bias=self._bias(vocabulary), logprobs=logprobs, prompt_logprobs=self.prompt_logprobs, grammar=grammar)

    def _bias(self, vocabulary: int) -> tuple[tuple[int, float], ...]:
        made: dict[int, float] = {}
        if len(self.logit_bias or {}) > BIASES:
            raise Refused(f"logit_bias: at most {BIASES} tokens, got {len(self.logit_bias)}", "logit_bias")
        for token, bias in (self.logit_bias or {}).items():
            number = token.lstrip("0")
            if not (token.isascii() and token.isdecimal()) or len(number) > 12 or int(token[-12:]) >= vocabulary:
                raise Refused(f"token_id {token[:20]} in logit_bias contains out-of-vocab token id. Vocabulary size: {vocabulary}", "logit_bias")
            made[int(token[-12:])] = max(-100.0, min(100.0, bias))
        return tuple(made.items())

    def grammar(self) -> tuple[str, str] | None:
        """What the reply must be like. Raises: Refused where nothing, or more than one thing, is said."""
        asked = self.structured_outputs
        if asked is not None:
            found = [(kind, value if isinstance(value, str) else json.dumps(value)) for kind, value in (("json", asked.held), ("regex", asked.regex), ("choice", asked.choice), ("grammar", asked.grammar), ("structural_tag", asked.structural_tag)) if value is not None]
            if len(found) != 1:
                raise Refused(f"You can only use one kind of structured outputs constraint (json, regex, choice, grammar or structural_tag), got {len(found)}")
            if found[0][0] == "choice" and not asked.choice:
                raise Refused("structured_outputs.choice is empty", "structured_outputs")
            return found[0]
        if self.response_format is None or self.response_format.type == "text":
            return None
        if self.response_format.type == "json_object":
            return "json", '{"type": "object"}'
        if self.response_format.json_schema is None or self.response_format.json_schema.held is None:
            raise Refused("When response_format type is 'json_schema', the 'json_schema' field must be provided. (parameter=response_format)", "response_format")
        return "json", json.dumps(self.response_format.json_schema.held)


class ChatRequest(Drawn):
    messages: Many[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: Many[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = True
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Drawn):
    prompt: str | Many[int] | Many[str] | Many[Many[int]]
    max_tokens: int | None = 16
    logprobs: int | None = None
    echo: bool | None = False
    add_special_tokens: bool | None = True
    suffix: str | None = None


class TokenizeRequest(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str | None = None
    prompt: str | None = None
    messages: Many[ChatMessage] | None = None
    tools: Many[Tool] | None = None
    add_special_tokens: bool | None = True
    add_generation_prompt: bool | None = True
    return_token_strs: bool | None = False


class DetokenizeRequest(BaseModel):
    model: str | None = None
    tokens: Many[int]


def error(words: str, kind: str, status: int, param: str | None = None) -> dict:
    """What was sent may stand in the words, and need not be Unicode."""
    return {"error": {"message": words.encode(errors="replace").decode(), "type": kind, "param": param and param.encode(errors="replace").decode(), "code": status}}


def usage(prompt: int, made: int) -> dict:
    return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}


def whole(identity: str, kind: str, model: str, choices: list[dict], prompt: int, made: int, **more) -> dict:
    """A response that is no stream. more: what only chats or completions have, or was asked for."""
    return {"id": identity, "object": kind, "created": int(time.time()), "model": model, "choices": choices, "service_tier": None, "system_fingerprint": None,
            "usage": {**usage(prompt, made), "prompt_tokens_details": None, "completion_tokens_details": None}, **more, "kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}


def _word(text: Text, token: int, as_id: bool | None) -> str:
    return f"token_id:{token}" if as_id else text.of([token])


def chat_logprobs(text: Text, tokens: list[int], logprobs: list[Alternatives], top: int, as_id: bool | None = False) -> dict:
    def one(token: int, value: float) -> dict:
        word = text.of([token])
        return {"token": _word(text, token, as_id), "logprob": max(value, -9999.0), "bytes": list(word.encode())}

    return {"content": [{**one(token, found[token].logprob), "top_logprobs": [one(other, likely.logprob) for other, likely in sorted(found.items(), key=lambda pair: -pair[1].logprob)[:top]] if top else []} for token, found in zip(tokens, logprobs, strict=True)]}


def completion_logprobs(text: Text, tokens: list[int], logprobs: list[Alternatives | None], top: int, as_id: bool | None = False) -> dict:
    made: dict[str, list] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    offset = 0
    for token, found in zip(tokens, logprobs, strict=True):
        word = text.of([token])
        made["text_offset"].append(offset)
        made["tokens"].append(_word(text, token, as_id))
        made["token_logprobs"].append(None if found is None else max(found[token].logprob, -9999.0))
        made["top_logprobs"].append(None if found is None else {_word(text, other, as_id): max(likely.logprob, -9999.0) for other, likely in list(found.items())[:top + 1]})
        offset += len(word)
    return made


def prompt_logprobs(text: Text, found: tuple[Alternatives | None, ...] | None) -> list[dict | None] | None:
    """As vLLM gives them: by token id."""
    if found is None:
        return None
    return [None if one is None else {str(token): {"logprob": max(likely.logprob, -9999.0), "rank": likely.rank, "decoded_token": text.of([token])} for token, likely in one.items()} for one in found]
