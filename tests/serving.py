"""Servers for tests: a real `python -m serve` in a process of its own, and the application around an engine that says what it is told to, both on a socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import uvicorn

from data_prep.artifacts import ROOT
from serve.app import create_app
from serve.engine import Job, State, Step
from serve.keys import digest
from serve.queue import Queue
from serve.service import Service
from serve.text import Text
from tests.parrot import tokenizer_with


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(model: Path, folder: Path, key: str | None = None, wait: float = 120, **settings) -> Iterator[tuple[str, subprocess.Popen]]:
    """(its address without /v1, the process) of a server that is ready; its log is folder/serve.log. settings: keys of conf/serve/serve.yaml."""
    port, log = free_port(), folder / "serve.log"
    if key:
        (folder / "keys.txt").write_text(f"test {digest(key)}\n")
        settings["api_keys"] = folder / "keys.txt"
    with log.open("w") as stream:
        running = subprocess.Popen([sys.executable, "-m", "serve", f"model={model}", f"port={port}", *(f"{name}={value}" for name, value in settings.items())], stdout=stream, stderr=stream, start_new_session=True)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + wait
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            assert running.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.1)
        yield url, running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


@contextlib.contextmanager
def served(model: Path, folder: Path, key: str | None = None, **settings) -> Iterator[str]:
    with process(model, folder, key, **settings) as (url, _):
        yield url


class Scripted:
    """A TokenEngine that says what it is told to: replies in order, the last again and again, or whatever a function makes of the prompt's text."""

    def __init__(self, replies: list[str] | Callable[[str], str], text: Text):
        self.replies, self.text, self.state, self.asked, self.closed = replies, text, State(), [], 0

    async def start(self) -> None:
        self.state.ready, self.state.progressed, self.state.facts = True, float("inf"), {"engine": "scripted"}

    async def run(self, job: Job) -> AsyncIterator[Step]:
        prompt = self.text.of(job.prompt)
        self.asked.append(prompt)
        reply = self.replies(prompt) if callable(self.replies) else self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        ids = [*self.text.ids(reply), self.text.tokenizer.eos_token_id][:job.sampling.max_tokens]
        try:
            for place, token in enumerate(ids):
                yield Step((token,), finish=None if place < len(ids) - 1 else "stop" if token == self.text.tokenizer.eos_token_id else "length")
        finally:
            self.closed += 1

    async def close(self) -> None:
        pass


def scripted_app(replies: list[str] | Callable[[str], str], name: str = "supportloop", max_tokens: int = 1024, policy: dict | None = None, door=None, most: int = 32, waiting: int = 128, with_completions: bool = True):
    """(application, its engine)."""
    text = Text(tokenizer_with((ROOT / "training/templates/tiny.jinja").read_text(encoding="utf-8")), max_tokens)
    engine = Scripted(replies, text)
    return create_app(Service(Queue(engine, most, waiting), text, name, len(text.tokenizer), "scripted", policy), door, with_completions), engine


@contextlib.contextmanager
def listening(app) -> Iterator[str]:
    """A real server on a socket; yields its address, with /v1."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join()


@contextlib.contextmanager
def saying(replies: list[str] | Callable[[str], str], **how) -> Iterator[str]:
    """`listening` to a `scripted_app`."""
    with listening(scripted_app(replies, **how)[0]) as url:
        yield url
