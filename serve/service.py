"""What all requests share: the model and its names, its tokenizer, the queue, the guard's policy, and what is counted."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace

from serve.engine import EngineError, Job, Sampling
from serve.metrics import Metrics
from serve.protocol import Drawn, Refused
from serve.queue import Queue
from serve.replies import Piece, pieces
from serve.text import Text


@dataclass
class Service:
    """name: the model's id. adapters: ids of LoRA adapters beside it, over the model `base`. policy: the guard's, or None. defaults:
    sampling values of the model's generation_config.json, which hold where a request says nothing, as in vLLM."""

    queue: Queue
    text: Text
    name: str
    vocabulary: int
    fingerprint: str
    policy: dict | None = None
    adapters: tuple[str, ...] = ()
    defaults: dict = field(default_factory=dict)
    base: str | None = None

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.name, self.queue)

    def model(self, asked: str | None) -> str:
        """Raises: Refused where there is no such model."""
        if asked in (None, "", self.name) or asked in self.adapters:
            return asked or self.name
        raise Refused(f"The model `{asked}` does not exist. Valid aliases: {', '.join([self.name, *self.adapters])}.", "model", 404, "NotFoundError")

    def check_length(self, asked: int | None) -> None:
        """Raises: Refused where a reply is to be longer than anything can be, or empty."""
        if asked is not None and asked < 1:
            raise Refused(f"max_tokens must be at least 1, got {asked}. (parameter=max_tokens, value={asked})", "max_tokens")
        if asked is not None and asked > self.text.max_tokens:
            raise Refused(f"max_tokens={asked} cannot be greater than max_model_len={self.text.max_tokens}. Please request fewer output tokens. (parameter=max_tokens, value={asked})", "max_tokens")

    def room(self, prompt: int, asked: int | None) -> int:
        """Tokens that a reply may have behind a prompt. Raises: Refused where there is no room."""
        if prompt >= self.text.max_tokens:
            raise Refused(f"This model's maximum context length is {self.text.max_tokens} tokens. However, your prompt contains at least {self.text.max_tokens + 1} input tokens, which exceeds this limit even without any output tokens. "
                          f"Please reduce the length of the input prompt. (parameter=input_tokens, value={prompt})", "input_tokens")
        if asked is not None and prompt + asked > self.text.max_tokens:
            raise Refused(f"This model's maximum context length is {self.text.max_tokens} tokens. However, you requested {asked} output tokens and your prompt contains {prompt} input tokens, for a total of {prompt + asked} tokens. "
                          f"Please reduce the length of the input prompt or the number of requested output tokens. (parameter=input_tokens, value={prompt})", "input_tokens")
        return asked or self.text.max_tokens - prompt

    async def choice(self, request: Drawn, identity: str, model: str, prompt: Sequence[int], sampling: Sampling, number: int = 0, words_only: bool = False) -> AsyncIterator[Piece]:
        """One choice of a request, the so many-eth to a prompt, as `replies.pieces` makes it: through the queue, counted. words_only: no special tokens in its text, whatever was asked for."""
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + number)
        job = Job(f"{identity}-{uuid.uuid4().hex}", tuple(prompt), sampling, model if model in self.adapters else None, request.priority or 0)
        meter = self.metrics.meter(job)
        made = pieces(self.queue, job, self.text, keep_stop=bool(request.include_stop_str_in_output), skip_special=words_only or request.skip_special_tokens is not False)
        try:
            async for piece in made:
                meter.made(len(piece.tokens), piece.finish)
                yield piece
        except EngineError:
            meter.finish = "error"
            raise
        finally:
            await made.aclose()
            meter.end()


async def together(parts: Sequence[Coroutine]) -> list:
    """What all of them return; when one fails, or nobody waits any more, the others are given up."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def at_leisure(is_short: bool, look: Callable, *what):
    """What is short at once; else in a thread, so that others are served meanwhile."""
    return look(*what) if is_short else await asyncio.to_thread(look, *what)


async def merged(sources: Sequence[AsyncIterator]) -> AsyncIterator:
    """What several iterators yield, as it comes; all are closed when one fails or nobody reads any more."""
    if len(sources) == 1:
        try:
            async for item in sources[0]:
                yield item
        finally:
            await sources[0].aclose()
        return
    waiting: asyncio.Queue = asyncio.Queue()

    async def read(source) -> None:
        try:
            async for item in source:
                waiting.put_nowait((item, None))
            waiting.put_nowait((None, None))
        except Exception as error:           # raised again below, to who reads
            waiting.put_nowait((None, error))
        finally:
            await source.aclose()

    tasks = [asyncio.create_task(read(source)) for source in sources]
    try:
        left = len(tasks)
        while left:
            item, error = await waiting.get()
            if error is not None:
                raise error
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
