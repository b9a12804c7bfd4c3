"""The endpoint: `/v1/models`, `/v1/chat/completions` (plain, streaming, tool calls) and `/health`.

With a company's `handoff.json` the guard (`serve.handoff`) looks at every reply before it goes out: a stream then begins when the reply is whole, for
words that were sent cannot be taken back. It never executes a tool and never logs what a customer or the assistant says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from data_prep.conversation import Message
from data_prep.hermes import OPEN, parse_reply
from serve.engine import Completion, Engine
from serve.handoff import guarded
from serve.protocol import ChatCompletionRequest, chunk, error, new_id, response, usage


def create_app(engine: Engine, model_name: str, max_tokens: int, policy: dict | None = None) -> FastAPI:
    """The application around one engine. max_tokens: of prompt and reply together. policy: what the guard must know of the company; None lets every reply through."""
    app = FastAPI(title="supportloop", docs_url=None, redoc_url=None)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return JSONResponse(error(f"{where}: {first['msg']}", "BadRequestError", 400, where), 400)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, problem: HTTPException) -> JSONResponse:
        kind = {404: "NotFoundError", 405: "MethodNotAllowed"}.get(problem.status_code, "BadRequestError")
        return JSONResponse(error(str(problem.detail), kind, problem.status_code), problem.status_code)

    @app.get("/health")
    def health() -> dict:
        return {"status": "ok"}

    @app.get("/v1/models")
    def models() -> dict:
        return {"object": "list", "data": [{"id": model_name, "object": "model", "created": int(time.time()), "owned_by": "supportloop", "max_model_len": max_tokens}]}

    @app.post("/v1/chat/completions")
    async def chat(request: ChatCompletionRequest):
        if request.model not in (None, model_name):
            return JSONResponse(error(f"The model `{request.model}` does not exist; this server has `{model_name}`.", "NotFoundError", 404, "model"), 404)
        messages, sampling = [m.plain() for m in request.messages], request.sampling(max_tokens // 2)
        guard = (lambda reply: guarded(messages, reply, policy).reply) if policy else None
        if request.stream:
            counted = bool(request.stream_options and request.stream_options.include_usage)
            return StreamingResponse(events(engine.stream(messages, sampling), model_name, counted, guard), media_type="text/event-stream")
        completion = (await run_in_threadpool(engine.generate, [messages], sampling))[0]
        reply = parse_reply(completion.text)
        return response(model_name, await run_in_threadpool(guard, reply) if guard else reply, completion)

    return app


def events(pieces: Iterator[str | Completion], model: str, include_usage: bool, guard: Callable[[Message], Message] | None = None) -> Iterator[str]:
    """The reply as server-sent events. Text goes out as it comes, or behind a guard as it passes; what may be the start of a tool call waits for its end."""
    identity, sent, text = new_id(), 0, ""
    yield _event(chunk(identity, model, {"role": "assistant", "content": ""}))
    for piece in pieces:
        if isinstance(piece, Completion):
            message = guard(parse_reply(piece.text)) if guard else parse_reply(piece.text)
            visible = message["content"]
            if len(visible) > sent:
                yield _event(chunk(identity, model, {"content": visible[sent:]}))
            for index, call in enumerate(message.get("tool_calls") or []):
                yield _event(chunk(identity, model, {"tool_calls": [{"index": index, **call}]}))
            reason = "tool_calls" if message.get("tool_calls") else piece.finish_reason
            yield _event(chunk(identity, model, {}, finish_reason=reason))
            if include_usage:
                yield _event(chunk(identity, model, None, counted=usage(piece)))
            yield "data: [DONE]\n\n"
            return
        text += piece
        safe = "" if guard else releasable(text)
        if len(safe) > sent:
            yield _event(chunk(identity, model, {"content": safe[sent:]}))
            sent = len(safe)


def releasable(text: str) -> str:
    """The part of a growing reply that is certainly not a tool call, without the white space around it, which a reply does not keep."""
    if OPEN in text:
        text = text[: text.index(OPEN)]
    for length in range(min(len(OPEN) - 1, len(text)), 0, -1):
        if text.endswith(OPEN[:length]):
            text = text[:-length]
            break
    return text.strip()


def _event(body: dict) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
