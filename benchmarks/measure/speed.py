"""How fast, how large, how soon: CPU time on one core, the same texts for both tools."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks.measure.tools import ENGINES, conversation, presidio, quiet, worker
from benchmarks.pii.sets import SETS
from data_prep.anonymise import make_work
from data_prep.artifacts import ROOT
from data_prep.company.generate import archive
from data_prep.company.pack import load_pack
from data_prep.conversation import Conversation
from data_prep.engines import mapped
from data_prep.pii import fit
from data_prep.pii.detect import country_of
from data_prep.pii.mask import Masker, texts_of
from data_prep.pii.normalise import shadow
from data_prep.pii.structured import structured

KEY = b"a key for measuring only"
BLOCK = 2300                # the mean size of a real conversation, bytes
PASSES = 3
MANY = 100                  # times as many conversations for two processes, whose start takes seconds


def company(size: int) -> list[Conversation]:
    """The made-up company's archive."""
    return [Conversation.from_record(c) for c, _, _ in archive(load_pack(str(ROOT / "data_prep/company/sample")), size, 0, 0.5)]


def corpora(size: int) -> dict[str, list[Conversation]]:
    """That archive, and the generated sets that are whole conversations."""
    cases = [case for name in ("all_languages", "kept") for case in SETS[name](n=max(1, size // 60 if name == "all_languages" else size))]
    return {"sample company": company(size), "generated sets": [conversation(case, i) for i, case in enumerate(cases)]}


def blocks(texts: Iterable[str]) -> Iterator[str]:
    """Turns joined to texts of a real conversation's size."""
    block, length = [], 0
    for text in texts:
        block.append(text)
        length += size_of(text) + 1
        if length >= BLOCK:
            yield "\n".join(block)
            block, length = [], 0
    if block:
        yield "\n".join(block)


def size_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """On Linux this process and its children stay on one core; elsewhere nothing happens."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def fastest(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest of three passes."""
    seconds = []
    for _ in range(PASSES):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return min(seconds)


def find_structured(texts: list[tuple[str, str | None]]) -> None:
    for text, market in texts:
        list(structured(shadow(text).text, market))


def rates(conversations: list[Conversation], python: str | None, fitted: Path) -> dict:
    """MB per CPU second of each tool, by turn and by conversation: {"by turn": {tool: rate}, …}."""
    masker, made = Masker(KEY, fit.load(fitted)), {}
    turns = [(text, country_of(c.locale)) for c in conversations for _, text in texts_of(c.messages) if text]
    whole = list(blocks(text for text, _ in turns))
    markets = [market for _, market in turns[:: max(1, len(turns) // len(whole))]]
    for unit, texts in (("by turn", turns), ("by conversation", [(text, markets[i % len(markets)]) for i, text in enumerate(whole)])):
        size = sum(size_of(text) for text, _ in texts)
        made[unit] = {"bytes": size, "texts": len(texts), "ours, structured": size / 1e6 / fastest(lambda texts=texts: find_structured(texts))}
        if unit == "by conversation":
            made[unit]["own_bytes"] = sum(size_of(text) for text, _ in turns) / len(conversations)
            made[unit]["ours, full stage"] = sum(size_of(text) for text, _ in turns) / 1e6 / fastest(lambda: [masker.apply(c) for c in conversations])
        for which, name in ENGINES.items() if python else ():
            made[unit][name] = size / 1e6 / presidio(python, which, [text for text, _ in texts], PASSES)[1]["cpu"]
    return made


def cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def scaling(conversations: list[Conversation], fitted: Path, shard: int = 50) -> dict:
    """Wall seconds of the stage with one and two worker processes, their start included, and how busy the machine was just before (this process alone: 1)."""
    shards = [[(c, []) for c in conversations[i:i + shard]] for i in range(0, len(conversations), shard)]
    seconds, work, load = {}, {}, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    for workers in (1, 2):
        begun, used = time.perf_counter(), cpu()
        for _ in mapped(functools.partial(make_work, KEY, str(fitted), None), shards, "local", workers):
            pass
        seconds[str(workers)], work[str(workers)] = time.perf_counter() - begun, cpu() - used
    return {"seconds": seconds, "cpu": work, "speed-up": seconds["1"] / seconds["2"], "load": load, "conversations": len(conversations)}


# A child that is started by a large process inherits that one's peak memory; this small one stands between them.
LAUNCHER = """
import json, resource, subprocess, sys, time
begun = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": code, "wall": time.perf_counter() - begun, "cpu": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)}))
"""


def process(command: list[str], lines: Iterable[str]) -> dict:
    """A process of its own fed with these lines: {"cpu", "wall", "peak_mb"}."""
    done = subprocess.run([sys.executable, "-c", LAUNCHER, *command], input="".join(lines), capture_output=True, text=True, cwd=ROOT, env={**quiet(), "SUPPORTLOOP_KEY": KEY.decode()}, check=True)
    used = json.loads(done.stdout)
    if used["code"]:
        raise RuntimeError(f"{' '.join(command[1:3])} failed: {done.stderr.strip()[-300:]}")
    return used


def footprints(conversations: list[Conversation], python: str | None, fitted: Path) -> dict:
    """Start-up (one conversation or text) and peak memory (all of them) of both tools, each in a process of its own."""
    records = [json.dumps(c.to_record()) + "\n" for c in conversations]
    texts = [json.dumps("\n".join(text for _, text in texts_of(c.messages))) + "\n" for c in conversations]
    commands = {"ours": ([sys.executable, "-m", "data_prep.anonymise", f"fit={fitted}"], records)}
    commands |= {name: (worker(python, which), texts) for which, name in ENGINES.items()} if python else {}
    made = {}
    for name, (command, lines) in commands.items():
        start, whole = process(command, lines[:1]), process(command, lines)
        made[name] = {"start_cpu": start["cpu"], "start_wall": start["wall"], "start_mb": start["peak_mb"], "peak_mb": whole["peak_mb"]}
    return made


def speed(python: str | None, fitted: Path, size: int) -> dict:
    """Everything of this module. size: conversations of the archive."""
    made = corpora(size)
    with one_core():
        by_corpus = {name: rates(conversations, python, fitted) for name, conversations in made.items()}
        small = footprints(made["sample company"], python, fitted)
    return {"rates": by_corpus, "footprints": small, "scaling": scaling(company(MANY * size), fitted)}
