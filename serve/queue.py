"""Who is served next: so many at once, so many waiting, the urgent first; and the counts that the metrics show."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator

from serve.engine import EngineError, Job, State, Step, TokenEngine


class Full(EngineError):
    """More are waiting than may: come back later."""


class Queue:
    """A TokenEngine in front of another: `most` jobs at once go to it, `waiting` more wait; lower priority numbers go first, equals in the order they came."""

    def __init__(self, engine: TokenEngine, most: int, waiting: int):
        self.engine, self.most, self.most_waiting = engine, most, waiting
        self.running, self.line, self.number = 0, [], itertools.count()
        self.progressed = time.monotonic()

    @property
    def state(self) -> State:
        return self.engine.state

    @property
    def waiting(self) -> int:
        return sum(not turn.done() for *_, turn in self.line)

    async def start(self) -> None:
        await self.engine.start()

    async def close(self) -> None:
        await self.engine.close()

    def admit(self, count: int = 1) -> None:
        """Raises: Full where there is no room for so many more; EngineError where the engine takes none."""
        if not self.state.ready:
            raise EngineError(self.state.why)
        if self.running + self.waiting + count > self.most + self.most_waiting:
            raise Full(f"{self.running} requests are at work and {self.waiting} are waiting; no more are taken")

    async def run(self, job: Job) -> AsyncIterator[Step]:
        """Raises: EngineError. A reader who is slow, or reads no more, keeps no place: what is made waits for them here."""
        await self._turn(job.priority)
        if self.running == 1:
            self.progressed = time.monotonic()
        made: asyncio.Queue[Step | Exception | None] = asyncio.Queue()
        making = asyncio.create_task(self._make(job, made))
        making.add_done_callback(lambda _: self._leave())
        try:
            while (step := await made.get()) is not None:
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    async def _make(self, job: Job, made: asyncio.Queue) -> None:
        steps = self.engine.run(job)
        try:
            async for step in steps:
                self.progressed = time.monotonic()
                made.put_nowait(step)
            made.put_nowait(None)
        except Exception as problem:         # raised again by `run`, to who reads
            made.put_nowait(problem)
        finally:
            await steps.aclose()

    def _leave(self) -> None:
        self.running -= 1
        self._next()

    async def _turn(self, priority: int) -> None:
        if self.running < self.most and not self.waiting:
            self.running += 1
            return
        if self.waiting >= self.most_waiting:
            raise Full(f"{self.running} requests are at work and {self.waiting} are waiting; no more are taken")
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self.line, (priority, next(self.number), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():         # it was its turn already
                self._leave()
            raise

    def _next(self) -> None:
        while self.line and self.running < self.most:
            *_, turn = heapq.heappop(self.line)
            if not turn.done():
                self.running += 1
                turn.set_result(None)

    def silent(self) -> float:
        """Seconds since anything was made, while something is at work; 0 where nothing is."""
        return time.monotonic() - self.progressed if self.running else 0.0
