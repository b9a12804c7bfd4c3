"""Where masking runs: in this process, in several on this machine, or on a Ray cluster. The output is the same, byte for byte.

Work goes out in shards and comes back in order; only a few shards are under way at any time, so memory does not grow
with the archive.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from data_prep.artifacts import StageError

ENGINES = ("local", "ray")
_worker: Callable | None = None


def mapped(make: Callable[[], Callable], shards: Iterable, engine: str, workers: int) -> Iterator:
    """Yield work(shard) in order. make() builds `work` once per process; both it and the shards must pickle."""
    if engine == "ray":
        yield from _on_ray(make, shards, workers)
    elif engine != "local":
        raise StageError(f"anonymise.engine={engine} is unknown; the engines are {', '.join(ENGINES)}")
    elif workers <= 1:
        work = make()
        yield from map(work, shards)
    else:
        # spawn: a fork of a process that has threads (a progress bar, a tracker) may hang
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (make,)) as pool:
            under_way: deque = deque()
            for shard in shards:
                under_way.append(pool.submit(_call, shard))
                if len(under_way) > 2 * workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()


def end_with_parent() -> None:
    """End this process when the one that started it ends, however it does: a worker whose parent was killed would wait for ever, and hold the run's lock."""
    threading.Thread(target=lambda: (multiprocessing.connection.wait([multiprocessing.parent_process().sentinel]), os._exit(1)), daemon=True).start()


def _start(make: Callable[[], Callable]) -> None:
    global _worker
    end_with_parent()
    _worker = make()


def _call(shard):
    return _worker(shard)


def _on_ray(make: Callable[[], Callable], shards: Iterable, workers: int) -> Iterator:
    """Ray Data, window by window: the driver reads, as many actors as `workers` mask, on whichever machine.

    Source: https://docs.ray.io/en/latest/data/transforming-data.html (stateful transforms)
    """
    try:
        import ray
    except ImportError as error:
        raise StageError('anonymise.engine=ray needs Ray: pip install "supportloop[ray]" (or ray[data]==2.60.*)') from error

    class Work:
        def __init__(self):
            self.work = make()

        def __call__(self, row: dict) -> dict:
            return {"at": row["at"], "made": self.work(row["shard"])}

    if not ray.is_initialized():
        # one more than the actors, or nobody is left to hand them their work
        ray.init(num_cpus=max(1, workers) + 1, log_to_driver=False, logging_level="error", include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = iter(shards)
    while window := list(islice(shards, 8 * max(1, workers))):
        rows = ray.data.from_items([{"at": at, "shard": shard} for at, shard in enumerate(window)], override_num_blocks=len(window))
        made = rows.map(Work, concurrency=max(1, workers)).take_all()
        yield from (row["made"] for row in sorted(made, key=lambda row: row["at"]))
