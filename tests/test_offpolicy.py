"""Estimates from a log, against a world whose truth is known."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.offpolicy import LEAST, LogError, effective, estimates, main, read_log, weight

QUALITY = {("easy", "short"): 4.0, ("easy", "long"): 3.0, ("hard", "short"): 2.0, ("hard", "long"): 3.5}


def log(n: int, seed: int, epsilon: float = 0.2, long: float = 0.9) -> tuple[list[dict], float]:
    """(decisions of a policy that mostly answers short, the true mean rating of one that answers long so often)."""
    rng, made = random.Random(seed), []
    for _ in range(n):
        stratum = rng.choice(["easy", "hard"])
        action = "short" if rng.random() < 1 - epsilon else "long"
        made.append({"action": action, "propensity": 1 - epsilon if action == "short" else epsilon, "target": {"short": 1 - long, "long": long},
                     "rating": QUALITY[stratum, action] + rng.gauss(0, 0.5), "stratum": stratum})
    truth = sum(0.5 * (1 - long if action == "short" else long) * value for (_, action), value in QUALITY.items())
    return made, truth


def test_both_estimates_find_the_truth_that_the_mean_misses():
    errors = {"mean": [], "snips": [], "dr": []}
    for seed in range(20):
        decisions, truth = log(1500, seed)
        found = estimates(decisions)
        for name, value in (("mean", found["served"]), ("snips", found["snips"]["value"]), ("dr", found["doubly_robust"]["value"])):
            errors[name].append(value - truth)
    assert abs(sum(errors["snips"]) / 20) < 0.03
    assert abs(sum(errors["dr"]) / 20) < 0.03
    spread = {name: sum(e * e for e in found) for name, found in errors.items()}
    assert spread["dr"] < spread["snips"] < spread["mean"], "what is known of the strata makes it surer"


def test_intervals_hold_the_truth_nineteen_times_in_twenty():
    held = 0
    for seed in range(40):
        decisions, truth = log(600, 100 + seed)
        found = estimates(decisions)["doubly_robust"]
        held += found["low"] <= truth <= found["high"]
    assert held >= 34


def test_too_few_effective_decisions_are_refused():
    decisions, _ = log(60, 1)
    found = estimates(decisions)
    assert found["effective"] < LEAST
    assert "snips" not in found
    assert "too little" in found["why"]


def test_without_propensities_it_only_describes():
    decisions = [{k: v for k, v in d.items() if k != "propensity"} for d in log(500, 2)[0]]
    found = estimates(decisions)
    assert found["kind"] == "descriptive"
    assert found["actions"]["long"]["mean"] == pytest.approx(3.25, abs=0.15)
    assert found["actions"]["short"]["mean"] == pytest.approx(3.0, abs=0.15)


def test_what_was_not_rated_is_counted_and_left_out():
    decisions, _ = log(800, 3)
    for d in decisions[::2]:
        d["rating"] = None
    assert (estimates(decisions)["decisions"], estimates(decisions)["rated"]) == (800, 400)


@given(st.lists(st.tuples(st.floats(0.05, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_no_more_effective_decisions_than_decisions(pairs):
    decisions = [{"action": "a", "propensity": mu, "target": {"a": pi, "b": 1 - pi}, "rating": 3, "stratum": ""} for mu, pi in pairs]
    assert effective(decisions) <= len(decisions) + 1e-9
    assert all(weight(d) >= 0 for d in decisions)


@pytest.mark.parametrize(("row", "says"), [({}, "action"), ({"action": "a", "propensity": 0}, "propensity"), ({"action": "a", "propensity": 0.5, "target": {"a": 0.4}}, "add up"),
                                           ({"action": "a", "rating": "my secret"}, "rating")])
def test_a_bad_line_is_named_and_not_repeated(tmp_path, row, says, capsys):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(LogError, match=f"line 1.*{says}"):
        read_log(path)
    assert main([f"log={path}"]) == 1
    assert "secret" not in capsys.readouterr().err


def test_the_command_prints_what_it_found(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(d) + "\n" for d in log(400, 5)[0]))
    assert main([f"log={path}"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "off-policy"
