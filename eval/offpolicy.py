"""What another policy would have been rated, from the log of the one that was served.

    python -m eval.offpolicy log=decisions.jsonl

One decision a line (a reply variant, a handoff threshold within a band; never an explicit wish for a person, which nobody may draw lots about):

    {"action": "short", "propensity": 0.95, "target": {"short": 0.2, "long": 0.8}, "rating": 4, "stratum": "return/en"}

`propensity` is the probability with which the served policy took the action, `target` that of every action under the policy that is asked about, `stratum`
what is alike enough to be compared. Decisions without a rating are counted and left out: who rates is no random sample, and no estimate here mends that.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.conversation import read_jsonl

LEAST = 100           # effective decisions below which nothing is estimated
FOLDS = 5


class LogError(ValueError):
    """A log that cannot be used: which line, what, what to do."""


def weight(decision: dict) -> float:
    """π(a) / μ(a): how much likelier the target policy takes what was done."""
    return decision["target"].get(decision["action"], 0.0) / decision["propensity"]


def effective(decisions: list[dict]) -> float:
    """(Σw)² / Σw² (Kish 1965): so many equally weighted decisions say as much."""
    weights = [weight(d) for d in decisions]
    most = max(weights, default=0.0)          # so that no square of a tiny weight is 0
    return sum(w / most for w in weights) ** 2 / sum((w / most) ** 2 for w in weights) if most else 0.0


def snips(weights: np.ndarray, ratings: np.ndarray) -> float:
    """Self-normalised inverse propensity score, Σ w r / Σ w (Swaminathan and Joachims 2015)."""
    return float((weights * ratings).sum() / weights.sum())


def doubly_robust(weights: np.ndarray, errors: np.ndarray, model: np.ndarray) -> float:
    """Mean of Σ_a π(a) q(s, a), the `model`, and Σ w (r - q(s, a)) / Σ w, the `errors` of the model where it can be seen (Dudík et al. 2011, self-normalised)."""
    return float(model.mean() + (weights * errors).sum() / weights.sum())


def modelled(decisions: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """(r - q(s, a), Σ_a π(a) q(s, a)) of each decision; q is the mean rating of an action in its stratum, of the other folds' decisions."""
    means = [_expected([d for i, d in enumerate(decisions) if i % FOLDS != fold]) for fold in range(FOLDS)]
    errors = [d["rating"] - means[i % FOLDS](d["stratum"], d["action"]) for i, d in enumerate(decisions)]
    return np.array(errors), np.array([sum(p * means[i % FOLDS](d["stratum"], action) for action, p in d["target"].items()) for i, d in enumerate(decisions)])


def _expected(decisions: list[dict]) -> Callable[[str, str], float]:
    """The mean rating of an action in a stratum, drawn towards that of the action, and that towards that of all, by one decision's weight."""
    everything = sum(d["rating"] for d in decisions) / max(1, len(decisions))
    by_action, by_both = defaultdict(list), defaultdict(list)
    for d in decisions:
        by_action[d["action"]].append(d["rating"])
        by_both[d["stratum"], d["action"]].append(d["rating"])

    def mean(stratum: str, action: str) -> float:
        of_action = (sum(by_action[action]) + everything) / (len(by_action[action]) + 1)
        return (sum(by_both[stratum, action]) + of_action) / (len(by_both[stratum, action]) + 1)

    return mean


def descriptive(decisions: list[dict]) -> dict[str, dict]:
    """Without propensities: the mean rating of each action, in every stratum that has all actions, weighted by the stratum's share. It describes; it does not say what another policy would have got."""
    actions = sorted({d["action"] for d in decisions})
    strata = defaultdict(lambda: defaultdict(list))
    for d in decisions:
        strata[d["stratum"]][d["action"]].append(d["rating"])
    shared = {name: by for name, by in strata.items() if all(by[action] for action in actions)}
    size = {name: sum(map(len, by.values())) for name, by in shared.items()}
    return {action: {"mean": sum(size[name] * sum(by[action]) / len(by[action]) for name, by in shared.items()) / sum(size.values()) if shared else None,
                     "n": sum(len(by[action]) for by in shared.values())} for action in actions}


def interval(estimate: Callable[..., float], *columns: np.ndarray, draws: int = 1000) -> dict:
    """An estimate of the columns' rows, the first of them the weights, with its 95 % bootstrap interval."""
    rng, n = np.random.default_rng(0), len(columns[0])
    drawn = (rng.integers(0, n, n) for _ in range(draws))
    made = [estimate(*(column[rows] for column in columns)) for rows in drawn if columns[0][rows].any()]
    low, high = np.quantile(made, [0.025, 0.975])
    return {"value": estimate(*columns), "low": float(low), "high": float(high), "n": n}


def estimates(decisions: list[dict]) -> dict:
    """SNIPS and DR with their intervals, or why there are none."""
    rated = [d for d in decisions if d.get("rating") is not None]
    found: dict = {"decisions": len(decisions), "rated": len(rated)}
    if not all(d.get("propensity") for d in rated) or not rated:
        return found | {"kind": "descriptive", "why": "no propensities were logged: no policy but the served one can be judged by this log", "actions": descriptive(rated)}
    enough = effective(rated)
    found |= {"kind": "off-policy", "effective": enough, "served": sum(d["rating"] for d in rated) / len(rated)}
    if enough < LEAST:
        return found | {"why": f"an effective sample of {enough:.0f} decisions says too little; {LEAST} are needed: log more, or ask about a policy nearer to the served one"}
    weights = np.array([weight(d) for d in rated])
    return found | {"snips": interval(snips, weights, np.array([d["rating"] for d in rated], float)), "doubly_robust": interval(doubly_robust, weights, *modelled(rated))}


def read_log(path: str | Path) -> list[dict]:
    """The decisions of a log. Raises: LogError naming the line, never what is in it."""
    found = []
    for number, row in read_jsonl(path):
        if not isinstance(row, dict) or not isinstance(row.get("action"), str):
            raise LogError(f"{path}, line {number}: a decision needs an `action`")
        given = row.get("propensity")
        if given is not None and not (isinstance(given, int | float) and 0 < given <= 1):
            raise LogError(f"{path}, line {number}: `propensity` must be above 0 and at most 1")
        target = row.get("target", {})
        if given is not None and (not isinstance(target, dict) or abs(sum(target.values()) - 1) > 1e-6):
            raise LogError(f"{path}, line {number}: the probabilities of `target` must add up to 1")
        if row.get("rating") is not None and not isinstance(row["rating"], int | float):
            raise LogError(f"{path}, line {number}: `rating` must be a number, or left out")
        found.append({"stratum": "", "target": {}, **row})
    if not found:
        raise LogError(f"{path} holds no decision")
    return found


def main(arguments: list[str]) -> int:
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if set(given) != {"log"}:
        print(__doc__)
        return 0 if not arguments or {"-h", "--help"} & set(arguments) else 1
    try:
        print(json.dumps(estimates(read_log(given["log"])), indent=2))
    except (LogError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
