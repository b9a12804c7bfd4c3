"""Who comes in, and how much: keys, rates, sizes, request ids, one line of log a request, and the way out when the endpoint is to stop."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import queue
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from serve.engine import where
from serve.keys import Rate, owner
from serve.protocol import error

OPEN = ("/health", "/ready", "/ping", "/metrics", "/version")         # what needs no key; all else does, whatever else there will be
LINES = 10_000        # of the log that may wait
log = logging.getLogger("supportloop.serve")


@dataclass
class Door:
    """keys: names by hash, or None for no keys. most_bytes: of a request's body. per_minute: requests of each key, 0 for any number."""

    keys: dict[str, str] | None = None
    most_bytes: int = 2 ** 20
    per_minute: int = 0
    open_routes: tuple[str, ...] = OPEN
    draining: bool = False
    inside: int = 0                    # requests that are being answered
    rate: Rate = field(init=False)

    def __post_init__(self) -> None:
        self.rate = Rate(self.per_minute)

    def middleware(self, app):
        """The application behind this door, as ASGI has it."""
        return _Behind(self, app)

    def stopped(self, scope: dict) -> tuple[int, dict, dict] | None:
        """(status, body, headers) where a request goes no further, else None; `scope["state"]["key"]` says whose it is."""
        path, headers = scope["path"], dict(scope["headers"])
        if path in self.open_routes:
            return None
        if self.keys is not None:
            name = owner(self.keys, headers.get(b"authorization", b"").decode("latin-1"))
            if name is None:
                return 401, error("a valid API key is missing: send it as `Authorization: Bearer <key>`", "Unauthorized", 401), {"www-authenticate": "Bearer"}
            scope["state"]["key"] = name
        if self.draining and scope["method"] == "POST":
            return 503, error("this server is stopping: ask another, or again in a moment", "Service Unavailable", 503), {"retry-after": "1"}
        if scope["method"] == "POST" and (wait := self.rate.wait(scope["state"].get("key", "anybody"))):
            return 429, error(f"more than {self.per_minute} requests in a minute", "RateLimitError", 429), {"retry-after": str(int(wait) + 1)}
        if int(headers.get(b"content-length", b"0") or 0) > self.most_bytes:
            return self.too_large()
        return None

    def too_large(self) -> tuple[int, dict, dict]:
        return 413, error(f"the request is larger than {self.most_bytes} bytes", "RequestTooLarge", 413), {"connection": "close"}


class _TooLarge(Exception):
    pass


class _Behind:
    def __init__(self, door: Door, app):
        self.door, self.app = door, app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, headers = time.monotonic(), 0, dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        identity = given if re.fullmatch(r"[\w.:-]{1,128}", given) else uuid.uuid4().hex
        scope.setdefault("state", {})["id"] = identity
        taken, is_large = 0, False

        async def counted() -> dict:
            nonlocal taken, is_large
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.door.most_bytes:
                is_large = True
                raise _TooLarge
            return message

        async def said(message: dict) -> None:
            if not is_large:             # what the application makes of half a body is of no interest
                await named(message)

        async def named(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", identity.encode())]}
            await send(message)

        async def answer(code: int, body: dict, more: dict) -> None:
            content = json.dumps(body).encode()
            await named({"type": "http.response.start", "status": code, "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *((k.encode(), v.encode()) for k, v in more.items())]})
            await named({"type": "http.response.body", "body": content})

        self.door.inside += 1
        try:
            if (stopped := self.door.stopped(scope)) is not None:
                await answer(*stopped)
            else:
                await self.app(scope, counted, said)
                if is_large:
                    raise _TooLarge
        except _TooLarge:
            await answer(*self.door.too_large())
        except Exception as problem:         # its words may hold what a customer wrote
            log.error(json.dumps({"event": "failed", "id": identity, **where(problem)}))
            if status == 0:
                await answer(500, error("the server failed; its log has the kind of error under this request's id", "InternalServerError", 500), {})
        finally:
            self.door.inside -= 1
            if scope["path"] not in self.door.open_routes:
                log.info(json.dumps({"event": "request", "id": identity, "method": scope["method"], "path": scope["path"][:80], "status": status, "ms": round(1000 * (time.monotonic() - began), 1), "key": scope["state"].get("key")}))


def log_to_stderr() -> Callable[[], None]:
    """One JSON object a line, with the time, on stderr, whatever becomes of that for others (`only_our_lines`). A thread writes them: nobody's reply waits for who reads the log, and what nobody reads is dropped.

    Returns what gives the last lines a moment to be written."""
    waiting: queue.Queue = queue.Queue(LINES)
    handler = logging.StreamHandler(os.fdopen(os.dup(2), "w", buffering=1))
    handler.setFormatter(_Lines())
    log.handlers, log.propagate = [logging.handlers.QueueHandler(waiting)], False
    log.setLevel(logging.INFO)
    logging.handlers.QueueListener(waiting, handler).start()

    def end() -> None:
        until = time.monotonic() + 1
        while not waiting.empty() and time.monotonic() < until:
            time.sleep(0.01)

    return end


@contextlib.contextmanager
def only_our_lines() -> Iterator[None]:
    """Libraries' own words on stderr, in which a customer's may be, go nowhere meanwhile."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f'{{"time": "{time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))}", "level": "{record.levelname.lower()}", {record.getMessage()[1:]}'
