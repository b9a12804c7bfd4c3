"""The child process in which an embedded engine runs: requests come in through a pipe, steps go out, one message for all jobs of a step.

It dies with its parent, and its parent outlives it: whatever kills an engine (memory, a bug in native code) kills no connection.
"""

from __future__ import annotations

import os
import signal
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from serve.engine import Batcher, Job, Step, where
from serve.engine.grammar import ebnf, is_plain

STRUCTURES = 64       # different ones that the fast engine is given: it keeps each for ever


@dataclass(frozen=True)
class Settings:
    """folder: the exported model. base, adapters: the model that LoRA adapters were made for, and their folders by name. fast: whether OpenVINO makes what it can make. cache: GB of its keys and values."""

    folder: str
    slots: int
    threads: int
    fast: bool
    cache: int
    base: str | None = None
    adapters: tuple[tuple[str, str], ...] = ()


class Both:
    """The fast engine for what it can do, the exact one for the rest; that is loaded when it is first needed."""

    def __init__(self, settings: Settings, loads: Callable[[], None] = lambda: None):
        """loads: called before something is done that may take minutes."""
        import torch
        import transformers

        warnings.filterwarnings("ignore")           # stderr is the endpoint's log, a JSON object a line; and on a full disk a progress bar would end the process
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(settings.threads or torch.get_num_threads())
        self.settings, self.loads, self.fast, self.exact, self.based, self.structures = settings, loads, None, None, None, set()
        if settings.fast:
            from serve.engine.openvino import CONVERTED, OpenVino, convert

            converted = Path(settings.folder) / CONVERTED
            if not (converted / "openvino_model.xml").is_file():
                try:
                    convert(settings.folder, converted)
                except OSError:           # the folder cannot be written, or its disk is full: then for as long as this process lives
                    converted = Path(tempfile.mkdtemp(prefix="supportloop-")) / CONVERTED
                    convert(settings.folder, converted)
            self.fast = OpenVino(converted, settings.slots, settings.threads, settings.cache)
        else:
            self._exact()
        if settings.adapters:
            from serve.engine.exact import Exact

            self.based = Exact(settings.base, dict(settings.adapters))

    def _exact(self):
        if self.exact is None:
            from serve.engine.exact import Exact

            self.loads()
            self.exact = Exact(self.settings.folder)
        return self.exact

    def add(self, job: Job) -> None:
        wants = job.sampling
        if job.adapter is not None:
            self.based.add(job)
        elif self.fast is None or wants.logprobs is not None or wants.prompt_logprobs is not None or wants.logit_bias or (wants.grammar and not self._is_for_fast(wants.grammar)):
            self._exact().add(job)
        else:
            self.fast.add(job)

    def _is_for_fast(self, grammar: tuple[str, str]) -> bool:
        if grammar not in self.structures and len(self.structures) < STRUCTURES and is_plain(ebnf(*grammar)):
            self.structures.add(grammar)
        return grammar in self.structures

    def _engines(self) -> list[Batcher]:
        return [engine for engine in (self.fast, self.exact, self.based) if engine is not None]

    def cancel(self, job_id: str) -> None:
        for engine in self._engines():
            engine.cancel(job_id)

    def busy(self) -> bool:
        return any(engine.busy() for engine in self._engines())

    def step(self) -> dict[str, Step]:
        return {job: step for engine in self._engines() if engine.busy() for job, step in engine.step().items()}


def work(pipe: Connection, settings: Settings) -> None:
    """Until the pipe closes: ("job", Job), ("drop", id) and ("ping", n) in; ("ready", facts), ("steps", {id: Step}), ("refused", id, words), ("failed", where), ("loading",) and ("pong", n) out."""
    for number in (signal.SIGINT, signal.SIGTERM):          # the parent's to answer: what was begun is made to its end
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    engine = Both(settings, lambda: pipe.send(("loading",)))
    pipe.send(("ready", {"engine": "openvino" if settings.fast else "transformers"}))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)            # from here on libraries may speak of what customers wrote
    try:
        while os.getppid() == parent:
            while pipe.poll(0 if engine.busy() else 1.0):
                kind, what = pipe.recv()
                if kind == "job":
                    try:
                        engine.add(what)
                    except ValueError as error:
                        pipe.send(("refused", what.id, str(error)))
                    except Exception as error:              # of this job's own values; the others go on
                        pipe.send(("steps", {what.id: Step(finish="error", failed=where(error))}))
                elif kind == "drop":
                    engine.cancel(what)
                elif kind == "ping":
                    pipe.send(("pong", what))
            if engine.busy() and (made := engine.step()):
                pipe.send(("steps", made))
    except (EOFError, BrokenPipeError, OSError):
        return          # the parent has gone
    except Exception as error:
        pipe.send(("failed", where(error)))                 # and this process with it: the parent starts another
