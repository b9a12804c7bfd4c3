"""The endpoint: OpenAI's API as vLLM 0.32 serves it, with the guard before every chat reply.

    /v1/chat/completions  /v1/completions  /v1/models  /tokenize  /detokenize  /version  /metrics
    /health    the process is alive
    /ready     requests are taken and answered: the engine is there, something is made while something is asked for, nobody is draining

It never executes a tool, and writes no word of a customer or an assistant into its log, its errors or its metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from serve.chat import chat
from serve.completions import completions
from serve.door import Door
from serve.engine import EngineError, Impossible, where
from serve.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, Refused, TokenizeRequest, error
from serve.queue import Full
from serve.service import Service, at_leisure
from serve.text import NoText

AGAIN = "1"           # seconds, of Retry-After
LONG = 16384          # bytes of a request that is read in no time
SILENT = 5.0          # seconds without a token, while one is waited for, from which /ready says no
log = logging.getLogger("supportloop.serve")


def create_app(service: Service, door: Door | None = None, with_completions: bool = True) -> FastAPI:
    """The application around one engine; `door` is who may come in, and how much at once."""
    door = door or Door()

    @contextlib.asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        await service.queue.start()
        yield
        await service.queue.close()

    app = FastAPI(title="supportloop", version=version("supportloop"), docs_url=None, redoc_url=None, lifespan=running)
    app.state.door = door
    app.add_middleware(door.middleware)

    def answer(words: str, kind: str, status: int, param: str | None = None, **headers: str) -> JSONResponse:
        return JSONResponse(error(words, kind, status, param), status, headers or None)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> JSONResponse:
        """What is wrong and where, and nothing of what was sent."""
        problems = problem.errors()
        def place_of(problem: dict) -> str:
            return ".".join(str(part) if isinstance(part, int) or re.fullmatch("[a-zA-Z_]{1,40}", part) else "…" for part in problem["loc"])

        place = place_of(problems[0])
        if problems[0]["type"] == "model_attributes_type" and "application/json" not in request.headers.get("content-type", ""):
            return answer("1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed", "Bad Request", 400)
        told = "".join(f"\n  {{'type': '{one['type']}', 'loc': '{place_of(one)}', 'msg': '{one['msg']}'}}" for one in problems[:5])
        return answer(f"{len(problems)} validation error{'s' if len(problems) > 1 else ''}:{told}", "Bad Request", 400, place)

    @app.exception_handler(Refused)
    async def refused(request: Request, problem: Refused) -> JSONResponse:
        return answer(problem.words, problem.kind, problem.status, problem.param)

    @app.exception_handler(NoText)
    async def unreadable(request: Request, problem: NoText) -> JSONResponse:
        return answer(str(problem), "BadRequestError", 400)

    @app.exception_handler(RecursionError)
    async def too_deep(request: Request, problem: RecursionError) -> JSONResponse:
        return answer("the request is nested too deeply", "Bad Request", 400)

    @app.exception_handler(Full)
    async def full(request: Request, problem: Full) -> JSONResponse:
        service.metrics.rejected()
        return answer(str(problem), "Service Unavailable", 503, **{"Retry-After": AGAIN})

    @app.exception_handler(Impossible)
    async def impossible(request: Request, problem: Impossible) -> JSONResponse:
        return answer(str(problem), "BadRequestError", 400)

    @app.exception_handler(EngineError)
    async def down(request: Request, problem: EngineError) -> JSONResponse:
        return answer(str(problem), "Service Unavailable", 503, **{"Retry-After": AGAIN})

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, problem: HTTPException) -> JSONResponse:
        if problem.status_code == 400:            # a body that is no JSON at all
            return answer(str(problem.detail), "Bad Request", 400)
        return JSONResponse({"detail": problem.detail}, problem.status_code, problem.headers)

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/ready")
    async def ready() -> JSONResponse:
        why = "draining: what was begun is being finished" if door.draining else service.queue.state.why if not service.queue.state.ready else ""
        if not why and (silent := max(service.queue.silent(), service.queue.state.silent())) > SILENT:
            why = f"nothing was made for {silent:.0f} seconds"
        return JSONResponse({"ready": not why, "running": service.queue.running, "waiting": service.queue.waiting, **({"why": why} if why else service.queue.state.facts)}, 503 if why else 200, {"Retry-After": AGAIN} if why else None)

    @app.get("/ping")
    @app.post("/ping")
    async def ping() -> Response:
        return Response()

    @app.get("/version")
    async def which() -> dict:
        return {"version": version("supportloop")}

    @app.get("/metrics")
    async def metrics() -> Response:
        text, kind = service.metrics.text()
        return Response(text, media_type=kind)

    @app.get("/v1/models")
    async def models() -> dict:
        def card(name: str, parent: str | None) -> dict:
            rights = {"id": f"modelperm-{uuid.uuid4().hex[:16]}", "object": "model_permission", "created": int(time.time()), "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True, "allow_search_indices": False,
                      "allow_view": True, "allow_fine_tuning": False, "organization": "*", "group": None, "is_blocking": False}
            return {"id": name, "object": "model", "created": int(time.time()), "owned_by": "supportloop", "root": name, "parent": parent, "max_model_len": service.text.max_tokens, "permission": [rights]}

        return {"object": "list", "data": [card(service.name, None), *(card(name, service.base) for name in service.adapters)]}

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request):
        return await made(await prepared(chat, body, f"chatcmpl-{request.state.id}", request), body.stream, request)

    if with_completions:
        @app.post("/v1/completions")
        async def text_completions(body: CompletionRequest, request: Request):
            return await made(await prepared(completions, body, f"cmpl-{request.state.id}", request), body.stream, request)

    async def prepared(prepare, body, identity: str, request: Request):
        """A structure takes its time to be read too."""
        return await at_leisure(is_short(request) and body.structured_outputs is None and body.response_format is None, prepare, service, body, identity)

    async def made(asked, stream: bool | None, request: Request) -> Response:
        if stream:
            return StreamingResponse(lines(asked.events()), media_type="text/event-stream")
        return JSONResponse(await unless_gone(request, asked.response()))

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest, request: Request) -> dict:
        service.model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise Refused("give either prompt or messages")
        text = service.text

        def read() -> list[int]:
            if body.prompt is not None:
                return text.ids(body.prompt, body.add_special_tokens is not False)
            return text.whole([m.plain() for m in body.messages], [tool.model_dump(exclude_none=True) for tool in body.tools or []] or None, add_generation_prompt=body.add_generation_prompt is not False)

        ids = await at_leisure(is_short(request), read)
        return {"count": len(ids), "max_model_len": text.max_tokens, "tokens": ids, "token_strs": text.tokenizer.convert_ids_to_tokens(ids) if body.return_token_strs else None}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict:
        service.model(body.model)
        if any(not 0 <= token < service.vocabulary for token in body.tokens):
            raise Refused("tokens holds an id that is not in the vocabulary", "tokens")
        return {"prompt": service.text.of(body.tokens)}

    return app


def is_short(request: Request) -> bool:
    return int(request.headers.get("content-length") or LONG + 1) <= LONG


async def lines(events: AsyncIterator[dict]) -> AsyncIterator[str]:
    """Server-sent events of a stream; where it breaks, its last is an error, for its status went out long ago."""
    try:
        async for event in events:
            yield f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"
    except EngineError as problem:
        yield f"data: {json.dumps(error(str(problem), 'Service Unavailable', 503))}\n\n"
    except Exception as problem:         # its words may hold what a customer wrote
        log.error(json.dumps({"event": "stream broke", **where(problem)}))
        yield f"data: {json.dumps(error('the reply could not be finished', 'InternalServerError', 500))}\n\n"
    finally:
        await events.aclose()
    yield "data: [DONE]\n\n"


async def unless_gone(request: Request, response) -> dict:
    """The response, given up as soon as the client has gone: its place in the engine is somebody else's then."""
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, left = asyncio.ensure_future(response), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            return {}
        return work.result()
    finally:
        left.cancel()
        if not work.done():
            work.cancel()
