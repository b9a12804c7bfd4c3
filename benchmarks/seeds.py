"""How much a result depends on the draw: the same pipeline from several seeds, side by side, with the spread.

    python -m benchmarks.seeds runs=runs/dev,runs/seed1,runs/seed2 [out=benchmarks/seeds.md]

Each a finished run of the pipeline (`python -m training.pipeline run_name=seed1 seed=1`): a seed makes its own archive, base, adapters and rollouts; evaluation's customers are the same.
A run's differences are paired by customer, with 95 % intervals from drawing customers anew. Over all runs: the mean, the least and the most, and two 95 % intervals of the mean: from drawing customers
anew, for these very trainings; and by Student's t over the runs, which are few, for trainings from other seeds too.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from statistics import mean, stdev

from benchmarks.shapes import shown
from data_prep.artifacts import StageError, recorded_config, require
from data_prep.conversation import read_jsonl
from data_prep.statistics import paired_difference, wilson

NAMES = ("sft", "dpo", "ppo")
PAIRS = (("dpo", "sft"), ("ppo", "sft"), ("ppo", "dpo"))
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}          # Student's t, two-sided, by number of runs


def outcomes(run_dir: Path) -> tuple[int, dict[str, list[dict]]]:
    """A run's seed, and of each candidate the outcomes with unseen wordings, in the customers' order. Raises: StageError where one is missing."""
    config = recorded_config(run_dir, "evaluate")
    found = {name: [row for _, row in read_jsonl(path)] for name in NAMES if (path := require(config, "evaluate", "the benchmark") / f"talks/{name}-unseen.jsonl").is_file()}
    if len(found) < len(NAMES):
        raise StageError(f"{run_dir} has no talks of {', '.join(set(NAMES) - set(found))}: where PPO was refused, ppo/refusal.json says why")
    return config.seed, found


def over_runs(a: list[list[float]], b: list[list[float]]) -> str:
    """Of several runs of the same customers the mean of a less b, its range, and its intervals over customers and over runs, in points."""
    values, (_, low, high) = [mean(x) - mean(y) for x, y in zip(a, b, strict=True)], paired_difference(by_customer(a), by_customer(b))
    half = T_95[len(values)] * stdev(values) / len(values) ** 0.5
    return (f"{100 * mean(values):+.1f} ({100 * min(values):+.1f} to {100 * max(values):+.1f}; customers [{100 * low:+.1f}, {100 * high:+.1f}], "
            f"runs [{100 * (mean(values) - half):+.1f}, {100 * (mean(values) + half):+.1f}])")


def by_customer(runs: list[list[float]]) -> list[float]:
    """Each customer's mean over the runs."""
    return [mean(each) for each in zip(*runs, strict=True)]


def table(runs: list[tuple[int, dict[str, list[dict]]]]) -> list[str]:
    """Markdown: a column a run, rows of success, violations, deeds nobody asked for, and their paired differences in points."""
    lines = ["| | " + " | ".join(f"seed {seed}" for seed, _ in runs) + " | all: mean (range; 95 % over customers, over runs) |", "|---" * (len(runs) + 2) + "|"]
    for what, of in (("success", lambda o: float(o["success"])), ("violations", lambda o: float(bool(o["violations"]))), ("unasked deeds", lambda o: float(bool(o["unasked"])))):
        figures = [{name: [of(o) for o in each] for name, each in found.items()} for _, found in runs]
        for name in NAMES:
            cells = [f"{mean(f[name]):.1%} [{low:.0%}, {high:.0%}]" for f in figures for low, high in [wilson(int(sum(f[name])), len(f[name]))]]
            shares = [mean(f[name]) for f in figures]
            lines.append(f"| {what}, {name} | " + " | ".join(cells) + f" | {mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%}) |")
        for a, b in PAIRS:
            gains = [paired_difference(f[a], f[b]) for f in figures]
            lines.append(f"| {what}, {a} less {b}, points | " + " | ".join(f"{100 * v:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]" for v, low, high in gains) + f" | {over_runs([f[a] for f in figures], [f[b] for f in figures])} |")
    return lines


def main(arguments: list[str]) -> list[str]:
    options = dict(argument.split("=", 1) for argument in arguments)
    places, out = [Path(each) for each in options.get("runs", "").split(",") if each], Path(options.get("out", "runs/seeds.md"))
    if not 2 <= len(places) <= max(T_95):
        raise StageError(f"runs= names {len(places)} runs: give 2 to {max(T_95)} finished ones, with commas between")
    runs = sorted((outcomes(place) for place in places), key=lambda run: run[0])
    lines = ["# Several seeds", "", f"{datetime.date.today()}, {len(runs[0][1]['sft'])} simulated conversations a candidate and run, unseen wordings: {shown('benchmarks.seeds', arguments)}", "", *table(runs), ""]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    return lines


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except StageError as error:
        sys.exit(f"error: {error}")
