"""The part of the evaluation's page on what would be served: each hard gate with the guard and without, requests by language, attacks, personas, and the worst talks."""

from __future__ import annotations

import html

import matplotlib.pyplot as plt

from data_prep.report import table
from data_prep.statistics import wilson
from eval.attacks import CLASSES, FALLS
from eval.handoff import ESCALATED, EXPLICIT, TOPICS
from eval.metrics import AT_MOST, SERVED
from eval.report import cell, svg, talk
from serve.handoff import P_PERSON

WORST = 10


def sections(records: dict[str, dict], scorecard: dict, hard_gates: dict[str, float], views: dict[str, list], ours: bool = True) -> list[str]:
    """The page's parts for each candidate that went through the full suites; `views`: the business view of each that has one; `ours`: whether the guard that is spoken of is this project's, else an endpoint's own, if it has one, cannot be told from its model."""
    parts = ["<h2>What would be served: the model behind the guard</h2>", "<p>The guard looks at each reply before the customer gets it. <b>Alone</b> is the model without it. "
             "A gate counts what is served; where both columns pass, the model does it by itself, where only the first does, the guard does it.</p>"] if ours else ["<h2>What it does</h2>", "<p>What stands behind the address is tried as it is: what its model does alone cannot be seen, so <b>served</b> and <b>alone</b> are one, and of what would be found by words it is this project's guard that is spoken of.</p>"]
    for name, suites in records.items():
        parts += [f"<h3>{name}</h3>", gates(scorecard[name]["served"], hard_gates)]
        if name in views:
            parts += ["<h4>Beside the field's best-known case</h4>", table(["figure", "the public case", "ours, served", "how", "only live"], views[name])]
        parts += ["<h4>Explicit requests for a person, by language</h4>", by_language(suites["handoff"]),
                  "<h4>When a person must take over: precision and recall of the guard's words</h4>", curve(suites["handoff"]), kinds(suites["handoff"]),
                  "<h4>Attacks that were fallen for</h4>", attacks(suites["attacks"]), "<h4>Customers of every kind</h4>", by_persona(suites["personas"]),
                  f"<h4>The {WORST} worst talks</h4>", *worst(suites)]
    return parts


def gates(row: dict, hard_gates: dict[str, float]) -> str:
    """One line a metric: what is asked, what is served, what the model does alone, and who does it."""
    lines = []
    for name in (n for n in SERVED if n in row):
        asked = f"{'at most' if name in AT_MOST else 'at least'} {hard_gates[name]:g}" if name in hard_gates else "not asked"
        alone = row[name]["alone"]
        lines.append([name, asked, cell(row[name]), cell({**alone, "gate": None, **({"unit": row[name]["unit"]} if "unit" in row[name] else {})}), done_by(row[name], hard_gates.get(name), name in AT_MOST)])
    return table(["metric", "gate", "served", "alone", "done by"], lines)


def done_by(metric: dict, threshold: float | None, harm: bool) -> str:
    """Whether the model passes the gate by itself, or the guard makes it, or neither."""
    if threshold is None or metric["value"] is None:
        return ""
    passes = [value is not None and (value <= threshold if harm else value >= threshold) for value in (metric["value"], metric["alone"]["value"])]
    return {(True, True): "model", (True, False): "guard", (False, True): "the model; the guard spoils it"}.get(tuple(passes), "neither")


def by_language(rows: list[dict]) -> str:
    """Explicit requests that the guard's words alone find, by language, and those that reach a person in the end."""
    codes = sorted({r["language"] for r in rows if r["kind"] in EXPLICIT})
    figure, axes = plt.subplots(figsize=(9, 2.6))
    for offset, label, colour, hit in ((-0.2, "reach a person", "#2e8b57", lambda r: r["served"]), (0.2, "found by the guard's words alone", "#9ccbb2", lambda r: r["p"] >= P_PERSON)):
        asked = [[hit(r) for r in rows if r["language"] == code and r["kind"] in EXPLICIT] for code in codes]
        axes.bar([i + offset for i in range(len(codes))], [sum(a) / len(a) for a in asked], 0.38, label=label, color=colour)
    axes.set_xticks(range(len(codes)), codes, fontsize=8)
    axes.set_ylim(0, 1.15)
    axes.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}" if v <= 1 else "")
    axes.legend(frameon=False, loc="upper center", ncol=2, fontsize=8)
    return svg(figure)


def curve(rows: list[dict]) -> str:
    """Precision and recall over the threshold, and how the probabilities are calibrated."""
    written = [(r["p"], r["kind"] in ESCALATED) for r in rows if r["form"] == "as written"]
    points = []
    for step in range(1, 100):
        chosen = [true for p, true in written if p >= step / 100]
        if chosen:
            points.append((step / 100, sum(chosen) / len(chosen), sum(chosen) / sum(true for _, true in written)))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
    left.plot([recall for _, _, recall in points], [precision for _, precision, _ in points], color="#2a7ab0")
    at = min(points, key=lambda point: abs(point[0] - P_PERSON))
    left.plot(at[2], at[1], "o", color="#2a7ab0")
    left.annotate(f"threshold {P_PERSON:g}: precision {at[1]:.0%}, recall {at[2]:.0%}", (at[2], at[1]), textcoords="offset points", xytext=(-8, -16), ha="right", fontsize=8)
    left.set_xlabel("recall")
    left.set_ylabel("precision")
    bins = [[(p, true) for p, true in written if min(int(p * 10), 9) == k] for k in range(10)]
    right.plot([0, 1], [0, 1], color="#ccc", linewidth=1)
    right.plot([sum(p for p, _ in b) / len(b) for b in bins if b], [sum(t for _, t in b) / len(b) for b in bins if b], "o-", color="#8e5ea2")
    right.set_xlabel("the guard's probability")
    right.set_ylabel("a person must take over")
    return svg(figure)


def kinds(rows: list[dict]) -> str:
    """What comes of each kind of message, where the model was trained in the language and where not."""
    lines = []
    for kind in (*EXPLICIT, *TOPICS, "mentions", "ordinary"):
        mine = [r for r in rows if r["kind"] == kind]
        here = [r for r in mine if r["trained"]]
        lines.append([kind, "handed over" if kind in ESCALATED else "not handed over", _share([r["served"] for r in here]), _share([r["alone"] for r in here]), _share([r["p"] >= P_PERSON for r in mine]),
                      _share([r["served"] for r in mine if not r["trained"]])])
    return table(["kind of message", "should be", "handed over, trained languages", "by the model alone", "found by the guard's words, all languages", "handed over, other languages"], lines)


def _share(hits: list[bool]) -> str:
    low, high = wilson(sum(hits), len(hits))
    return f"{sum(hits) / len(hits):.1%} [{low:.1%}, {high:.1%}] n {len(hits)}" if hits else "none"


def attacks(rows: list[dict]) -> str:
    lines = []
    for kind in CLASSES:
        mine = [r for r in rows if r["kind"] == kind]
        if mine:
            control = sum(r["control"] for r in mine) / len(mine)
            lines.append([kind, _share([r["served"] for r in mine]), _share([r["alone"] for r in mine]), f"{control:.0%}" + ("" if control >= FALLS else ": does not count")])
    return table(["class", "served", "alone", "a bot without protection"], lines)


def by_persona(rows: list[dict]) -> str:
    lines = []
    for persona in dict.fromkeys(r["persona"] for r in rows):
        mine = [r for r in rows if r["persona"] == persona]
        after = [r["asked_for_person"] for r in mine if r["asked_for_person"]]
        within = " · ".join(f"within {n}: {sum(a <= n and r['handed_off'] for a, r in zip(after, [r for r in mine if r['asked_for_person']], strict=True)) / len(after):.0%}" for n in (1, 2, 3)) if after else ""
        lines.append([persona, _share([r["success"] for r in mine]), _share([r["alone"]["success"] for r in mine]), _share([r["handed_off"] for r in mine]), within])
    return table(["persona", "success, served", "alone", "handed over", "reached a person, requests"], lines)


def worst(suites: dict[str, list[dict]]) -> list[str]:
    """The talks that would hurt most: attacks fallen for, people not reached, violations, loops, failures."""
    harm = [(0, f"fell for {r['kind']}", r) for r in suites["attacks"] if r["served"]]
    harm += [(1, f"{r['kind']} not handed over, {r['language']}", r) for r in suites["handoff"] if r["kind"] in ESCALATED and not r["served"] and "messages" in r]
    harm += [(2, ", ".join([*t["violations"], *(f"unasked {u}" for u in t["unasked"])]), t) for t in suites["talks"] if t["violations"] or t["unasked"]]
    harm += [(3, f"said {t['most_repeated']} times", t) for t in suites["talks"] if t["most_repeated"] >= 3]
    harm += [(4, f"{t['scenario']}, {t['language']}: {t['ended']}", t) for t in suites["talks"] if not t["success"]]
    return [talk(html.escape(why), each["messages"]) for _, why, each in sorted(harm, key=lambda h: h[0])[:WORST]] or ["<p>none failed</p>"]
