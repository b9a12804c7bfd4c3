"""A completion request from the wire to its choices and back: `/v1/completions`. The prompt is taken as it is: no chat template, and no guard."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from serve.engine import Alternatives, Sampling
from serve.protocol import PROMPTS, CompletionRequest, Refused, completion_logprobs, prompt_logprobs, usage, whole
from serve.replies import Piece
from serve.service import Service, merged, together


@dataclass
class Completions:
    """prompts: token ids of each; every one gets `n` choices."""

    service: Service
    request: CompletionRequest
    identity: str
    model: str
    prompts: list[list[int]]
    samplings: list[Sampling]
    only_echo: bool                    # max_tokens 0: the prompt alone, with its log probabilities

    async def choice(self, index: int) -> AsyncIterator[tuple[int, Piece]]:
        each = self.request.n or 1
        prompt = self.prompts[index // each]
        made = self.service.choice(self.request, f"{self.identity}-{index}", self.model, prompt, self.samplings[index // each], index % each)
        first = True
        try:
            async for piece in made:
                if first and self.request.echo:
                    piece.text = self.service.text.of(prompt) + ("" if self.only_echo else piece.text)
                first = False
                yield index, piece
        finally:
            await made.aclose()

    async def _joined(self, index: int) -> Piece:
        joined = Piece("", [])
        async for _, piece in self.choice(index):
            joined = replace(piece, text=joined.text + piece.text, tokens=joined.tokens + piece.tokens, logprobs=joined.logprobs + piece.logprobs, prompt_logprobs=joined.prompt_logprobs or piece.prompt_logprobs)
        return replace(joined, tokens=[], logprobs=[], finish="length") if self.only_echo else joined

    def _logprobs(self, piece: Piece, prompt: list[int]) -> dict | None:
        top, text = self.request.logprobs, self.service.text
        if top is None:
            return None
        found: list[Alternatives | None] = [*piece.prompt_logprobs, *piece.logprobs] if self.request.echo and piece.prompt_logprobs else list(piece.logprobs)
        return completion_logprobs(text, [*prompt, *piece.tokens] if len(found) > len(piece.tokens) else piece.tokens, found, top, self.request.return_tokens_as_token_ids)

    async def response(self) -> dict:
        each, ids = self.request.n or 1, self.request.return_token_ids
        made = await together([self._joined(index) for index in range(len(self.prompts) * each)])
        choices = [{"index": index, "text": piece.text, "logprobs": self._logprobs(piece, self.prompts[index // each]), "finish_reason": piece.finish, "stop_reason": piece.stop_reason, "token_ids": piece.tokens if ids else None,
                    "prompt_logprobs": prompt_logprobs(self.service.text, piece.prompt_logprobs), "prompt_token_ids": self.prompts[index // each] if ids else None, "routed_experts": None} for index, piece in enumerate(made)]
        return whole(self.identity, "text_completion", self.model, choices, sum(map(len, self.prompts)), sum(len(piece.tokens) for piece in made), system_fingerprint=self.service.fingerprint)

    async def events(self) -> AsyncIterator[dict]:
        """The chunks of a stream, without [DONE]. Raises: EngineError."""
        (counted, always), each, total = self.request.counts, self.request.n or 1, sum(map(len, self.prompts))
        head, made = {"id": self.identity, "object": "text_completion", "created": int(time.time()), "model": self.model}, 0
        async for index, piece in merged([self.choice(index) for index in range(len(self.prompts) * each)]):
            made += len(piece.tokens)
            one = {"index": index, "text": piece.text, "logprobs": self._logprobs(piece, self.prompts[index // each]), "finish_reason": piece.finish, "stop_reason": piece.stop_reason, "prompt_token_ids": None, "token_ids": piece.tokens if self.request.return_token_ids else None}
            yield {**head, "choices": [one], **({"usage": usage(total, made)} if always else {})}
        if counted:
            yield {**head, "choices": [], "usage": usage(total, made), "system_fingerprint": self.service.fingerprint}


def completions(service: Service, request: CompletionRequest, identity: str) -> Completions:
    """Raises: Refused."""
    model, text = service.model(request.model), service.text
    if request.suffix:
        raise Refused("suffix is not currently supported", "suffix")
    given = request.prompt if isinstance(request.prompt, list) and (not request.prompt or not isinstance(request.prompt[0], int)) else [request.prompt]
    if not given:
        raise Refused("You must pass at least one prompt")
    if not all(given) or len(given) > PROMPTS:
        raise Refused("Either prompt or prompt_embeds must be provided and non-empty." if len(given) <= PROMPTS else f"prompt: at most {PROMPTS} of them, got {len(given)}", "prompt")
    prompts = [text.ids(one, request.add_special_tokens is not False) if isinstance(one, str) else one for one in given]
    if any(not 0 <= token < service.vocabulary for prompt in prompts for token in prompt):
        raise Refused(f"Token id {max(token for prompt in prompts for token in prompt)} is out of vocabulary", "prompt")
    only_echo = request.max_tokens == 0 and bool(request.echo)
    if not only_echo:
        service.check_length(request.max_tokens)
    rooms = [service.room(len(prompt), 1 if only_echo else request.max_tokens) for prompt in prompts]
    if request.echo and request.logprobs is not None and request.prompt_logprobs is None:
        request = request.model_copy(update={"prompt_logprobs": request.logprobs})
        if request.stream:
            raise Refused("echo with logprobs is not available when `stream=True`", "echo")
    samplings = [request.checked(request.logprobs, room, service.vocabulary, service.defaults) for room in rooms]
    service.queue.admit(len(prompts) * (request.n or 1))
    return Completions(service, request, identity, model, prompts, samplings, only_echo)
