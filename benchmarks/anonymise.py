"""How good and how fast anonymisation is, beside Presidio on the same texts in the same run.

    python -m benchmarks.anonymise [data=<folder of public data>] [presidio=<python with presidio-analyzer>]
    make bench-anonymise ARGS="data=<folder>"        makes Presidio's environment by itself

    sets=structured,synth,speed   only these
    size=5        so many cases of every generator instead of the usual number     show=5   print so many missed slots of MultiDoGO
    fit=, held_out=   artefacts other than the shipped one, and one trained without the names of the sets     out=   where the page goes

Generated sets need nothing. Their names come from a fifth of all names that the artefact measured on them never saw; the
public data is measured with the artefact that ships. Without `data` or `presidio` their rows say that they are missing.
benchmarks/anonymise.md is written only where nothing was left out; a page of less goes to runs/benchmark_anonymise/.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks.measure.bars import BARS, measured, missed, misses, verdict
from benchmarks.measure.page import picture, written
from benchmarks.measure.public import DOGO, SYNTH, UNER, absent, multidogo, synth, uner
from benchmarks.measure.speed import KEY, speed
from benchmarks.measure.tools import by_presidio, flagged, ours, presidio
from benchmarks.pii.sets import SETS
from data_prep.artifacts import StageError
from data_prep.conversation import write_json
from data_prep.pii import fit
from data_prep.pii.mask import Masker
from data_prep.statistics import wilson

HERE, RUNS = Path(__file__).parent, Path("runs/benchmark_anonymise")
SIZES = {"structured": 200, "names_known": 100, "split_over_turns": 20}     # where more cases narrow the interval
PUBLIC = {"synth": (SYNTH, synth), "multidogo": (DOGO, multidogo), "uner": (UNER, uner)}
AVAILABLE = (*SETS, *PUBLIC, "speed")
SPEED_SIZE = 200
OPTIONS = {"data", "presidio", "sets", "size", "show", "fit", "held_out", "out"}
PACKAGES = ("phonenumbers", "python-crfsuite", "python-stdnum", "rapidfuzz")


def main(arguments: list[str]) -> dict:
    """Measure, write the page, the picture and results.json, and return what is in the last."""
    options, wanted = read(arguments)
    begun, data, python = time.perf_counter(), options.get("data") or os.environ.get("SUPPORTLOOP_DATA"), options.get("presidio")
    results = {"made": facts(arguments, python, Path(options.get("fit", fit.SHIPPED))), "rows": generated([name for name in wanted if name in SETS], options, python)}
    results |= published([name for name in wanted if name in PUBLIC], Path(data) if data else None, options, python, results["rows"])
    if "speed" in wanted:
        say("speed, start-up and memory")
        results["speed"] = speed(python, Path(options.get("fit", fit.SHIPPED)), int(options.get("size", SPEED_SIZE)))
    results["made"]["minutes"] = (time.perf_counter() - begun) / 60
    whole = len(wanted) == len(AVAILABLE) and "size" not in options and python and not results["skipped"]
    write(results, Path(options.get("out") or (HERE if whole else RUNS)), Path(options.get("out") or RUNS))
    return results


def read(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """(options, what to measure). Raises: StageError."""
    if unknown := [a for a in arguments if a.split("=")[0] not in OPTIONS or "=" not in a]:
        raise StageError(f"unknown argument {unknown[0]}; the benchmark takes {', '.join(sorted(OPTIONS))}")
    options = dict(argument.split("=", 1) for argument in arguments)
    wanted = options["sets"].split(",") if options.get("sets") else list(AVAILABLE)
    if strange := sorted(set(wanted) - set(AVAILABLE)):
        raise StageError(f"sets={strange[0]} is unknown; choose among {', '.join(AVAILABLE)}")
    return options, wanted


def generated(names: list[str], options: dict[str, str], python: str | None) -> list[dict]:
    """The rows of the generated sets."""
    made: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        masker = held_out(options.get("held_out"), Path(folder)) if names else None
        for name in names:
            cases = list(SETS[name](**size_of(name, options.get("size"))))
            made += leak_rows(cases, masker) if name == "leaks" else rows(name, cases, masker, python)[0]
    return made


def published(names: list[str], data: Path | None, options: dict[str, str], python: str | None, before: list[dict]) -> dict:
    """{"rows": those before and those of the public data, "skipped": why not, "misses": what was missed most in MultiDoGO}."""
    made = {"rows": before, "skipped": {}, "misses": []}
    for name in names:
        part, cases_of = PUBLIC[name]
        if reason := absent(data, part):
            made["skipped"][name] = reason
            say(f"{name}: skipped, {reason}")
            continue
        cases = list(cases_of(data))[:int(options["size"]) if "size" in options else None]
        its_rows, judged = rows(name, cases, Masker(KEY, fit.load(Path(options.get("fit", fit.SHIPPED)))), python)
        made["rows"] = made["rows"] + its_rows
        if name == "multidogo":
            made["misses"] = misses(cases, judged)
            show(cases, judged, int(options.get("show", 0)))
    return made


def write(results: dict, folder: Path, raw: Path) -> None:
    for path in (folder, raw):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "anonymise.md").write_text(written(results), encoding="utf-8")
    (folder / "anonymise.svg").write_text(picture(results), encoding="utf-8")
    write_json(raw / "results.json", results)
    say(f"written: {folder / 'anonymise.md'}, {folder / 'anonymise.svg'}; {results['made']['minutes']:.1f} minutes")


def say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def facts(arguments: list[str], python: str | None, fitted: Path) -> dict:
    """What the figures depend on. Paths stay out of the page: they are this machine's."""
    command = " ".join(shlex.quote(a if a.split("=")[0] not in ("data", "presidio", "fit", "held_out", "out") else f"{a.split('=')[0]}=…") for a in arguments)
    versions = {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
    other = presidio(python, "all", ["x"])[1] if python else None
    return {"command": f"python -m benchmarks.anonymise {command}".strip(), "date": datetime.date.today().isoformat(), "versions": versions, "processors": os.cpu_count(), "artefact": fit.digest_of(fitted),
            "machine": platform.machine(), "presidio": other and {"versions": other["versions"], "recognisers": other["recognisers"]}}


def held_out(folder: str | None, made: Path) -> Masker:
    """A masker that never saw a fifth of all names: given, or trained here."""
    if folder is None:
        say("training the tagger without a fifth of all names")
        fit.ship(made, hold_out=True)
    return Masker(KEY, fit.load(Path(folder) if folder else made, hold_out=True))


def size_of(name: str, size: str | None) -> dict:
    """What a generator is called with."""
    if size is None:
        return {"n": SIZES[name]} if name in SIZES else {}
    return {"n": int(size), "others": int(size)} if name == "name_free" else {"n": int(size)}


def rows(name: str, cases: list[dict], masker: Masker, python: str | None) -> tuple[list[dict], list[dict]]:
    """(the rows of every bar on this set, what our stage made of each case)."""
    judged = [ours(case, masker, i) for i, case in enumerate(tqdm(cases, desc=name, unit="case", leave=False))]
    if python:
        say(f"{name}: Presidio on {sum(len(case['messages']) for case in cases)} messages")
    others = by_presidio(python, cases)
    made = [measured(bar, cases, judged, others) for bar in BARS if bar.source == name]
    for row in made:
        say(told(row))
    return made, judged


def told(row: dict) -> str:
    """A row for the terminal."""
    good, n = row["all"].get("ours", [0, 0])
    low, high = wilson(good, n)
    return f"{row['key']:10} {row['title']:62} {good / n if n else 0:.4f} [{low:.4f}, {high:.4f}]  n={n}  {verdict(row)}"


def leak_rows(pairs: list[dict], masker: Masker) -> list[dict]:
    """T10: our leak checker on clean output and on the same with one leak planted. No other tool has a leak check."""
    made = []
    for title, texts, least, most in (("planted leaks that the leak check sees", "leaky", 0.99, None), ("clean output that it objects to", "clean", None, 0.01)):
        hits = [(pair["group"], flagged(pair[texts], pair, masker)) for pair in tqdm(pairs, desc=texts, leave=False)]
        tally = {group: [sum(hit for g, hit in hits if group in (g, "")), sum(group in (g, "") for g, _ in hits)] for group in ("", *sorted({g for g, _ in hits}))}
        row = {"key": "T10", "title": title, "source": "leaks", "unit": "output", "least": least, "most": most, "each": None, "bad_if_high": most is not None, "quarantined": [0, len(pairs)],
               "readable": [0, 0], "reasons": [], "all": {"ours": tally.pop("")}, "groups": {group: {"ours": pair} for group, pair in tally.items()}}
        say(told(row))
        made.append(row)
    return made


def show(cases: list[dict], judged: list[dict], most: int) -> None:
    """A few missed slots, on the terminal only."""
    for case, (index, start, end, label), _ in missed(cases, judged)[:most]:
        say(f"missed {label}: {case['messages'][index]['content'][start:end]!r}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (StageError, RuntimeError) as error:
        sys.exit(f"error: {error}")
