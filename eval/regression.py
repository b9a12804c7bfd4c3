"""Is a candidate worse than what is out? The same customers, served by both, compared pair by pair.

`evaluate.against=runs/<the released run>` names it. A candidate is refused where it cannot be shown to be at most `evaluate.margin` worse: the interval of the
paired difference must not reach beyond (non-inferiority).
"""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.artifacts import StageError
from data_prep.conversation import read_jsonl
from data_prep.statistics import paired_difference

LEAST = 100           # customers met by both


def released(run: str) -> tuple[str, list[dict]]:
    """(winner, its talks as customers got them) of a run's evaluation. Raises: StageError where there is none."""
    folder = Path(run) / "evaluate"
    if not (folder / "decision.json").is_file():
        raise StageError(f"evaluate.against={run}: there is no {folder}/decision.json; name the folder of a run whose evaluation is finished")
    winner = json.loads((folder / "decision.json").read_text())["winner"]
    path = folder / f"suites/{winner}-talks.jsonl"
    if not path.is_file():
        raise StageError(f"evaluate.against={run}: " + (f"{path} is missing; evaluate that run again" if winner else "no candidate of that run passed, so nothing of it was released"))
    return winner, [row for _, row in read_jsonl(path)]


def over_release(talks: list[dict], before: list[dict], margin: float) -> dict[str, dict]:
    """`success_over_release` and `violations_over_release`: the paired differences over the customers that both met, gated at the margin. Raises: StageError where they met none alike."""
    theirs = {talk["number"]: talk for talk in before}
    pairs = [(talk, theirs[talk["number"]]) for talk in talks if talk["number"] in theirs and _same(talk, theirs[talk["number"]])]
    if len(pairs) < max(LEAST, len(talks) / 2):
        raise StageError(f"evaluate.against: that run met {len(pairs)} of this one's {len(talks)} customers, too few to compare; both need the same company pack and evaluate.seed")
    found = {}
    for name, of, harm in (("success_over_release", lambda t: float(t["success"]), False), ("violations_over_release", lambda t: float(bool(t["violations"])), True)):
        value, low, high = paired_difference([of(mine) for mine, _ in pairs], [of(other) for _, other in pairs])
        found[name] = {"value": value, "low": low, "high": high, "n": len(pairs), "gate": "pass" if (high <= margin if harm else low >= -margin) else "fail"}
    return found


def _same(mine: dict, other: dict) -> bool:
    """The same customer: the same case, opened in the same words."""
    return all(mine[key] == other[key] for key in ("scenario", "language")) and mine["messages"][:2] == other["messages"][:2]
