"""The two tools under test: our stage on a case, Presidio on a list of texts."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks.pii.score import survives
from benchmarks.pii.sets import MARKETS, SETS
from data_prep.conversation import Conversation
from data_prep.pii.detect import detect
from data_prep.pii.known import People
from data_prep.pii.leak import leaks
from data_prep.pii.lexicon import COMMON
from data_prep.pii.mask import Masker

WORKER = Path(__file__).with_name("presidio_worker.py")
ENGINES = {"all": "Presidio, all countries", "default": "Presidio, default"}
SURE = 0.4                  # of Presidio's own users, many take only what scores so much or more
SHORT = 6                   # a shorter piece than this may stand in an output by chance


def conversation(case: dict, number: int) -> Conversation:
    """A case as the stage reads it."""
    return Conversation(f"{case['set']}-{number}", case["messages"], case["locale"], customer=case["customer"], agents=case["agents"])


def ours(case: dict, masker: Masker, number: int) -> dict:
    """What our stage does with a case: {"found", "released", "reasons", "readable"}.

    found: [(start, end, kind)] of each message. released: whether the leak check let it out. readable: kinds of secrets
    that can still be read in what was released, whatever the detectors claim; of generated sets only, whose kinds it knows.
    """
    made = masker.apply(conversation(case, number))
    people = People.of([case["customer"], *case["agents"]])
    try:
        spans = detect([(m["role"], m["content"]) for m in case["messages"]], case["locale"], people, masker.rules, masker.fit.lexicon(case["locale"]))
    except Exception:       # the stage quarantined it, and says so in its reasons
        spans = [[] for _ in case["messages"]]
    readable = survives(case, [message["content"] for message in made.record["messages"]]) if made.record and case["set"] in SETS else []
    return {"found": [[(s.start, s.end, s.kind) for s in each] for each in spans], "released": made.record is not None, "reasons": made.reasons,
            "readable": [kind for kind, piece in readable if len(piece) >= SHORT or (kind == "name" and len(piece) >= 4)]}


def flagged(texts: list[str], pair: dict, masker: Masker) -> bool:
    """Does the leak check object to these output texts? (T10)"""
    lexicon = masker.fit.lexicon(pair["locale"])
    return bool(leaks(texts, [pair["customer"]], [], masker.rules.public, pair["locale"].split("-")[-1], lambda word: bool(lexicon.flags(word) & COMMON)))


def presidio(python: str, which: str, texts: Iterable[str], passes: int = 1) -> tuple[list[list], dict]:
    """(spans of each text, what the worker says of its run). Raises: subprocess.CalledProcessError with Presidio's own words on stderr."""
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    done = subprocess.run(worker(python, which, passes), input=lines, capture_output=True, text=True, env=quiet(), check=False)
    if done.returncode:
        raise RuntimeError(f"presidio={python} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    *spans, facts = map(json.loads, done.stdout.splitlines())
    return spans, facts


def worker(python: str, which: str, passes: int = 1) -> list[str]:
    return [python, str(WORKER), which, str(passes), ",".join(MARKETS)]


def quiet() -> dict:
    """The environment for a process whose CPU time counts."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def by_presidio(python: str | None, cases: list[dict]) -> list[dict]:
    """Of each case Presidio's spans: {tool: [(start, end, type)] of each message}, every message read by itself. Without Presidio empty."""
    if not python:
        return [{} for _ in cases]
    texts, made = [m["content"] for case in cases for m in case["messages"]], [{} for _ in cases]
    for which, name in ENGINES.items():
        spans, _ = presidio(python, which, texts)
        for least, title in ((0.0, name), (SURE, f"{name}, score {SURE} or more")):
            remaining = iter(spans)
            for case, each in zip(cases, made, strict=True):
                each[title] = [[(a, b, kind) for a, b, kind, score in next(remaining) if score >= least] for _ in case["messages"]]
    return made
