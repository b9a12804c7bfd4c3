"""The reward model's page: may it teach, how sure is it rightly, on what it fails, and the raters it learned from."""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from data_prep.artifacts import require
from data_prep.report import page, table

MEANING = {
    "accuracy": "held-out pairs in which the better reply has the higher reward",
    "calibration_error": "mean distance between how sure it is and how often it is right",
    "length_correlation": "how much it likes length within a pair, beyond what raters do",
    "state_over_words": "how much more it knows than a bag of words where only the state of the world tells two replies apart",
    "spoiled": "good replies preferred to themselves spoiled: another turn's or conversation's reply, a deed that nobody asked for, a number put wrong, cut short, spliced",
    "invariance": "largest change of a reward, in standard deviations, by batch, padding, order or packing",
}


def write(config, path: Path, found: dict) -> None:
    gate, metrics = found["gate"], found["metrics"]
    parts = [f"<p><b>{'It may teach: every check passed.' if gate['passed'] else 'It may not teach: ' + gate['why'] + '.'}</b> Measured on conversations of customers whom it never saw.</p>",
             table(["check", "what it is", "measured", "n", "needed", ""], [[c["name"], MEANING[c["name"]], interval(c), c["n"], c["needed"],
                   {True: "passed", False: "failed", None: "not judged"}[c["passed"]]] for c in gate["checks"]])]
    bins = next((c["bins"] for c in gate["checks"] if c.get("bins")), [])
    if bins:
        parts += ["<h2>Is it as often right as it is sure?</h2>", "<p>On the line it is; the larger a point, the more pairs.</p>", reliability(bins)]
    ways = next((c["by_way"] for c in gate["checks"] if c.get("by_way")), {})
    for title, rows in (("By stars between the two replies", metrics.get("accuracy_by_gap", {})), ("By way of spoiling", ways), ("By rater who had a part in the pair", metrics.get("accuracy_by_rater", {}))):
        if rows:
            parts += [f"<h2>{title}</h2>", table(["", "right [95 %]", "n"], [[name, f"{row['value']:.1%} [{row['low']:.1%}, {row['high']:.1%}]", row["n"]] for name, row in rows.items()])]
    raters = json.loads((require(config, "prepare", "reward") / "report.json").read_text()).get("raters", {})
    if raters:
        parts += ["<h2>Raters</h2>", "<p>Severity: stars by which a rater lies above (+) or below (-) others on the same kind of ticket, shrunk towards 0 where little is known. "
                  "Apart: how many stars from another rater of the same reply, as given and corrected.</p>",
                  table(["rater", "ratings", "mean", "severity", "replies also rated by others", "apart", "corrected"],
                        [[name, r["ratings"], f"{r['mean']:.2f}", f"{r['severity']:+.2f}", r["shared"], *("" if r[key] is None else f"{r[key]:.2f}" for key in ("apart", "apart_corrected"))] for name, r in raters.items()])]
    page(path, f"Reward model of {config.run_name}", parts)


def interval(check: dict) -> str:
    return f"{check['value']:.3f}" + (f" [{check['low']:.3f}, {check['high']:.3f}]" if check["low"] is not None else "")


def reliability(bins: list[dict]) -> str:
    """How often it is right (height) by how sure it is, beside the line where the two agree; the size of a point is its share of pairs."""
    figure, axes = plt.subplots(figsize=(4.2, 3.4))
    axes.plot([0.5, 1], [0.5, 1], color="#9aa0a6", linewidth=1)
    total = sum(b["n"] for b in bins)
    axes.scatter([b["confidence"] for b in bins], [b["right"] for b in bins], s=[20 + 600 * b["n"] / total for b in bins], color="#8e5ea2", alpha=0.7)
    axes.set_xlabel("how sure")
    axes.set_ylabel("how often right")
    axes.set_ylim(0.4, 1.03)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg"):]
