"""Jobs side by side in processes of one thread each: on a CPU a small model has little for a second thread to do."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from data_prep.artifacts import held_by_workers, peak_memory
from data_prep.engines import end_with_parent
from training.models import quieten


def at_once(config, jobs: int) -> int:
    """How many jobs run at a time: on a CPU as many as it has threads, else one."""
    return max(1, min(config.hardware.threads or 1, jobs)) if config.hardware.trainer.use_cpu else 1


def side_by_side(config, function: Callable, jobs: list[tuple]) -> list:
    """`function(config, *job)` of every job, in their order; the progress of the first of those at work is shown.

    Raises: what a job raises; the others that have begun are ended first.
    """
    several = at_once(config, len(jobs))
    if several == 1:
        return [function(config, *job) for job in jobs]
    with ProcessPoolExecutor(several, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(config,)) as workers:
        made = list(workers.map(_work, [function] * len(jobs), [config] * len(jobs), jobs, [number % several > 0 for number in range(len(jobs))]))
    held_by_workers({process: peak for _, process, peak in made})
    return [result for result, _, _ in made]


def _begin(config) -> None:
    end_with_parent()
    config.hardware.threads = 1
    quieten(config)


def _work(function: Callable, config, job: tuple, silent: bool):
    config.hardware.threads = 1
    with contextlib.redirect_stderr(open(os.devnull, "w")) if silent else contextlib.nullcontext():
        result = function(config, *job)
    return result, os.getpid(), peak_memory()
