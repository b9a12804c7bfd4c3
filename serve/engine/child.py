"""An embedded engine in a process of its own: jobs go down a pipe, steps come back, and a process that died or froze is started again.

Threads read and write the pipe, so that nothing blocks the event loop, a child that takes nothing in least of all. `state.progressed` is when the child last said anything; with jobs at work it speaks at every
token, without it answers a ping.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import AsyncIterator

from serve.engine import EngineError, Impossible, Job, State, Step
from serve.engine.worker import Settings, work

PING = 2.0            # seconds between two
FROZEN = 30.0         # seconds without a word after which a child is killed and started again
LOADING = 900.0       # and so many while it loads a model
WAIT = (0.5, 30.0)    # seconds before it is started again: at first, at most
STEADY = 300.0        # seconds after which an engine that ends has not ended again, but for the first time
log = logging.getLogger("supportloop.serve")


class Child:
    """A TokenEngine around `worker.work`."""

    def __init__(self, settings: Settings):
        self.settings, self.state = settings, State()
        self.jobs: dict[str, asyncio.Queue[Step | EngineError]] = {}
        self.process, self.pipe, self.watch, self.closing, self.restarts, self.since = None, None, None, False, 0, 0.0

    async def start(self) -> None:
        """Raises: EngineError where the model cannot be loaded."""
        self.loop = asyncio.get_running_loop()
        self._spawn()
        while not self.state.ready:
            if not self.process.is_alive():
                raise EngineError("the engine ended while it was loading the model: its own words are above")
            await asyncio.sleep(0.02)
        self.watch = asyncio.create_task(self._watch())

    def _spawn(self) -> None:
        self.since, self.patience = time.monotonic(), LOADING
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, self.settings), daemon=True, name="supportloop-engine")
        self.process.start()
        theirs.close()
        self.outbox: queue.SimpleQueue[tuple[str, object] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(self.pipe,), daemon=True).start()
        threading.Thread(target=self._write, args=(self.pipe, self.outbox), daemon=True).start()

    @staticmethod
    def _write(pipe, outbox: queue.SimpleQueue) -> None:
        with contextlib.suppress(OSError):         # a broken pipe is answered by `_lost`
            while (message := outbox.get()) is not None:
                pipe.send(message)

    def _read(self, pipe) -> None:
        with contextlib.suppress(EOFError, OSError, RuntimeError):       # RuntimeError: the loop is closed, and nobody wants to know any more
            while True:
                self.loop.call_soon_threadsafe(self._take, pipe, pipe.recv())
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._lost, pipe)

    def _take(self, pipe, message: tuple) -> None:
        if pipe is not self.pipe:
            return          # of a child that is gone
        self.state.progressed = time.monotonic()
        kind, *rest = message
        self.patience = LOADING if kind == "loading" else FROZEN
        if kind == "failed":
            log.error(json.dumps({"event": "engine failed", **rest[0]}))
        if kind == "ready":
            self.state.ready, self.state.why, self.state.facts, self.since = True, "", rest[0], time.monotonic()
        elif kind == "refused" and rest[0] in self.jobs:
            self.jobs[rest[0]].put_nowait(Impossible(rest[1]))
        elif kind == "steps":
            for job_id, step in rest[0].items():
                if step.failed:
                    log.error(json.dumps({"event": "job failed", **step.failed}))
                if job_id in self.jobs:
                    self.jobs[job_id].put_nowait(step)

    def _lost(self, pipe) -> None:
        """The child has ended: whoever waits for it is told, and it is started again."""
        if pipe is not self.pipe or self.closing:
            return
        if self.state.ready and time.monotonic() - self.since > STEADY:
            self.restarts = 0
        log.error(json.dumps({"event": "engine ended", "restarts": self.restarts}))
        self.outbox.put(None)
        pipe.close()
        self.state.ready, self.state.why = False, "the engine ended and is being started again"
        for waiting in self.jobs.values():
            waiting.put_nowait(Step(finish="error"))
        if self.watch:
            self.again = asyncio.create_task(self._again())

    async def _again(self) -> None:
        self.restarts += 1
        await asyncio.sleep(min(WAIT[0] * 2 ** min(self.restarts - 1, 10), WAIT[1]))
        if not self.closing:
            self._spawn()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PING)
            if self.state.ready:
                self._send("ping", 0)
            if time.monotonic() - max(self.since, self.state.progressed) > self.patience:
                self.process.kill()

    def _send(self, kind: str, what: object) -> None:
        self.outbox.put((kind, what))

    async def run(self, job: Job) -> AsyncIterator[Step]:
        if not self.state.ready:
            raise EngineError(self.state.why)
        waiting: asyncio.Queue[Step | EngineError] = asyncio.Queue()
        self.jobs[job.id] = waiting
        self._send("job", job)
        finished = False
        try:
            while not finished:
                step = await waiting.get()
                if isinstance(step, EngineError):
                    finished = True
                    raise step
                finished = step.finish is not None
                yield step
        finally:
            del self.jobs[job.id]
            if not finished:
                self._send("drop", job.id)

    async def close(self) -> None:
        self.closing = True
        if self.watch:
            self.watch.cancel()
        if self.process:
            self.outbox.put(None)
            with contextlib.suppress(OSError):
                self.pipe.close()
            await asyncio.to_thread(self.process.join, 5)
            if self.process.is_alive():
                self.process.kill()
