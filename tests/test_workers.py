"""Jobs side by side: in order, one thread each, the first one's progress shown, errors raised, nobody left behind."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conf.load import load_config
from data_prep import artifacts
from data_prep.artifacts import StageError
from tests.toys import ROOT
from training.workers import at_once, side_by_side

pytestmark = pytest.mark.slow
BYTES = 200 * 2**20


def job(config, number: int) -> tuple[int, int, int, int]:
    print(f"progress of {number}", file=sys.stderr)
    held = bytearray(BYTES)
    held[::4096] = b"x" * len(held[::4096])
    if number < 0:
        raise StageError("job: it cannot be done")
    return number, os.getpid(), torch.get_num_threads(), config.hardware.threads


def test_no_job_is_no_mistake():
    """An archive without a company pack has no finalists: its evaluation ended here."""
    assert side_by_side(load_config(["hardware.threads=2"]), job, []) == []


def waiting(config, folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def masker():
    return functools.partial(waiting, None)


@pytest.fixture
def two():
    return load_config(["hardware.threads=2"])


def test_results_come_in_order_from_processes_of_one_thread(two, capfd, monkeypatch):
    monkeypatch.setattr(artifacts, "_workers", {})
    made = side_by_side(two, job, [(number,) for number in range(4)])
    assert [number for number, *_ in made] == [0, 1, 2, 3]
    assert {(threads, wanted) for *_, threads, wanted in made} == {(1, 1)}
    processes = {process for _, process, *_ in made}
    assert os.getpid() not in processes
    assert len(processes) <= 2
    assert set(artifacts._workers) == processes
    assert all(peak > BYTES for peak in artifacts._workers.values())
    shown = capfd.readouterr().err
    assert "progress of 0" in shown
    assert "progress of 1" not in shown, "two bars in one place cannot be read"


def test_one_thread_or_a_gpu_stays_in_this_process(two):
    one = two.copy()
    one.hardware.threads = 1
    assert side_by_side(one, job, [(7,)])[0][:2] == (7, os.getpid())
    gpu = load_config(["hardware=gpu"])
    assert (at_once(gpu, 4), at_once(two, 4), at_once(two, 1)) == (1, 2, 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_job_raises_is_raised(two, threads):
    two.hardware.threads = threads
    with pytest.raises(StageError, match="it cannot be done"):
        side_by_side(two, job, [(-1,), (1,)])


@pytest.mark.parametrize("started", ["t.side_by_side(load_config(['hardware.threads=2']), t.waiting, [({0!r},)] * 2)", "list(mapped(t.masker, [{0!r}] * 2, 'local', 2))"])
def test_workers_end_with_the_process_that_started_them(tmp_path, started):
    program = f"from tests import test_workers as t; from conf.load import load_config; from data_prep.engines import mapped; {started.format(str(tmp_path))}"
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    until = time.time() + 120
    while len(list(tmp_path.iterdir())) < 2:
        assert time.time() < until, "they did not begin"
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    left = [int(path.name) for path in tmp_path.iterdir()]
    while left:
        assert time.time() < until, "they went on"
        left = [process for process in left if is_alive(process)]
        time.sleep(0.1)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
