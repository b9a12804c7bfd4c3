"""A running `vllm serve` as the engine: token ids go there and come back, over its `/v1/completions`.

The prompt is made here and goes as token ids, so that control tokens which a customer typed cannot become real ones there; a reader that goes away closes the
stream, which frees its place there too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import aiohttp
from opentelemetry import propagate

from serve.engine import Alternatives, EngineError, Impossible, Job, Likely, Sampling, State, Step

LOOK = 2.0            # seconds between two looks at whether it is there
SILENT = 120.0        # seconds without a word after which a reply is given up


class Upstream:
    """A TokenEngine. url: up to /v1; model: its name there; adapters: names there by the names they are served under here."""

    def __init__(self, url: str, model: str, key: str | None = None, adapters: dict[str, str] | None = None):
        self.url, self.model, self.adapters, self.state, self.watch = url.rstrip("/"), model, adapters or {}, State(why="the upstream has not answered yet"), None
        self.headers, self.client = {"Authorization": f"Bearer {key}"} if key else {}, None

    async def start(self) -> None:
        """Raises: EngineError where it is not there or has no such model."""
        self.client = aiohttp.ClientSession(headers=self.headers, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=SILENT))
        try:
            found = [card["id"] for card in (await self._models(10))["data"]]
        except (aiohttp.ClientError, TimeoutError, KeyError, TypeError, ValueError) as problem:
            await self.client.close()
            raise EngineError(f"engine={self.url} does not answer as vLLM does ({type(problem).__name__}): is it running, and does SUPPORTLOOP_UPSTREAM_KEY hold its key?") from None
        if missing := {self.model, *self.adapters.values()} - set(found):
            await self.client.close()
            raise EngineError(f"engine={self.url} has no model {', '.join(sorted(missing))}, but {', '.join(found)}: give upstream_model=<name>, and adapters by their names there")
        self._alive()
        self.state.facts = {"engine": "vllm"}
        self.watch = asyncio.create_task(self._look())

    async def _models(self, seconds: float) -> dict:
        async with self.client.get(f"{self.url}/models", timeout=aiohttp.ClientTimeout(total=seconds)) as answer:
            answer.raise_for_status()
            return await answer.json()

    def _alive(self) -> None:
        self.state.ready, self.state.progressed, self.state.why = True, time.monotonic(), ""

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self._models(LOOK)
                self._alive()
            except (aiohttp.ClientError, TimeoutError, ValueError) as problem:
                self.state.ready, self.state.why = False, f"the upstream does not answer ({type(problem).__name__})"

    async def run(self, job: Job) -> AsyncIterator[Step]:
        headers = {"X-Request-Id": job.id}
        propagate.inject(headers)            # of a trace, where this request is in one
        try:
            async with self.client.post(f"{self.url}/completions", json=asked(job, self.adapters.get(job.adapter, self.model)), headers=headers) as answer:
                if answer.status in (400, 404, 422):
                    raise Impossible(f"the upstream refused the request (status {answer.status})")
                if answer.status != 200:
                    raise EngineError(f"the upstream refused the request (status {answer.status})")
                if job.sampling.prompt_logprobs is not None:
                    yield step_of((await answer.json())["choices"][0], job.sampling)
                    return
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        yield Step(finish="error")
                        return
                    for choice in event["choices"]:
                        self.state.progressed = time.monotonic()
                        step = step_of(choice, job.sampling)
                        yield step
                        if step.finish:
                            return
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, IndexError, AttributeError) as problem:
            raise EngineError(f"the upstream broke off ({type(problem).__name__})") from None
        yield Step(finish="error")          # it ended without a word

    async def close(self) -> None:
        if self.watch:
            self.watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.watch
        if self.client:
            await self.client.close()


def asked(job: Job, model: str) -> dict:
    """The request for a job. Stop strings stay here: they are looked for in the text, which is made here."""
    s = job.sampling
    made = {"model": model, "prompt": list(job.prompt), "max_tokens": s.max_tokens, "temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k, "min_p": s.min_p, "presence_penalty": s.presence_penalty,
            "frequency_penalty": s.frequency_penalty, "repetition_penalty": s.repetition_penalty, "min_tokens": s.min_tokens, "ignore_eos": s.ignore_eos, "stop_token_ids": list(s.stop_token_ids), "seed": s.seed,
            "return_token_ids": True, "return_tokens_as_token_ids": True, "logprobs": s.logprobs, "prompt_logprobs": s.prompt_logprobs, "stream": s.prompt_logprobs is None}           # vLLM streams no log probabilities of prompts
    if s.logit_bias:
        made["logit_bias"] = {str(token): bias for token, bias in s.logit_bias}
    if s.grammar:
        kind, text = s.grammar
        if kind == "calls":
            tags = [{"type": "tag", "begin": one["begin"], "content": {"type": "json_schema", "json_schema": one["schema"]}, "end": one["end"]} for one in json.loads(text)]
            made["structured_outputs"] = {"structural_tag": json.dumps({"type": "structural_tag", "format": tags[0] if len(tags) == 1 else {"type": "or", "elements": tags}})}
        else:
            made["structured_outputs"] = {kind: text if kind in ("regex", "grammar", "structural_tag") else json.loads(text)}
    return made


def step_of(choice: dict, sampling: Sampling) -> Step:
    """A choice of a chunk, or of a whole answer, as a step; log probabilities of a reply come by "token_id:<n>" there."""
    tokens = tuple(choice.get("token_ids") or ())
    logprobs: tuple[Alternatives, ...] = ()
    if sampling.logprobs is not None and choice.get("logprobs"):
        told = choice["logprobs"]
        logprobs = tuple({token: Likely(value)} | {int(name.split(":")[1]): Likely(other) for name, other in (top or {}).items()} for token, value, top in zip(tokens, told["token_logprobs"], told["top_logprobs"] or [None] * len(tokens), strict=True))
    read = choice.get("prompt_logprobs")
    prompt = None if read is None else tuple(None if one is None else {int(token): Likely(told["logprob"], told["rank"]) for token, told in one.items()} for one in read)
    finish = choice.get("finish_reason")
    return Step(tokens, logprobs, finish if finish in (None, "stop", "length") else "error", prompt)
