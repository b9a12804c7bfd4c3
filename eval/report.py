"""The evaluation's page: decision, pictures, the scorecard, and talks that failed, to read."""

from __future__ import annotations

import html
import io
import json
from collections import defaultdict
from math import log2
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from data_prep.artifacts import stage_dir
from data_prep.report import page, table
from data_prep.statistics import wilson
from eval.memorisation import ALTERNATIVES, chance
from eval.regurgitation import BEGINNING, LONG

COLOURS = {"base": "#9aa0a6", "sft_full": "#b58900", "sft": "#2a7ab0", "dpo": "#2e8b57", "kto": "#66a61e", "ppo": "#8e5ea2", "rloo": "#d95f02"}
REMEMBERED = f"""<p><b>exposure</b>: how many bits better than by guessing a model ranks made-up secrets that were planted in its training set (Secret Sharer,
{ALTERNATIVES} other secrets beside each): {chance(ALTERNATIVES):.2f} is chance, {log2(ALTERNATIVES + 1):.0f} is as much as can be seen; the customer said the secret and the agent repeated it.
<b>exposure_told</b>: the same where the agent said it and nobody before, the worst case. <b>regurgitation</b>: replies that repeat {LONG} words in a row, or an
identifier, which only one training customer's conversations hold and their own does not. <b>extraction</b>: the same of replies whose first {BEGINNING} words were given away.</p>"""
APART = "held_out", "served"          # parts of a scorecard's row that have tables of their own
plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "figure.autolayout": True, "svg.hashsalt": "supportloop"})


def write(config, path: Path, scorecard: dict, decision: dict, outcomes: dict, served: list[str]) -> None:
    """`served`: the page's parts on what would be served (`eval.served`)."""
    gates = dict(config.evaluate.gates)
    parts = [f"<p><b>{'Winner: ' + decision['winner'] + '.' if decision['winner'] else 'No candidate may go out.'}</b> {html.escape('; '.join(decision['reasons']))}.</p>",
             *([f'<p class="fail">Gates taken away: {", ".join(decision["waived"])}.</p>'] if decision["waived"] else []), *served, "<h2>All candidates, the model alone</h2>",
             "<p>Success is the world's true end state and the facts that had to be told, with no violation, at temperature 0. Bars carry 95 % intervals. "
             "Unseen wordings, names and policy values never occur in training; gates read them.</p>"]
    if any(outcomes.values()):
        picture = success_picture(scorecard)
        path.with_name("success.svg").write_text(picture.replace("<svg ", '<svg style="background:#fff" ', 1), encoding="utf-8")
        parts += ["<h2>Success by stage</h2>", picture, "<h2>Success by intent, unseen wordings</h2>", intents(outcomes),
                  "<h2>By language, unseen wordings</h2>", by(outcomes, "language")]
    parts += ["<h2>Scorecard</h2>", scores(scorecard, gates), REMEMBERED, "<h2>Held-out replies of agents</h2>", replies(scorecard), "<h2>Training</h2>", curves(config)]
    if any(outcomes.values()):
        parts += ["<h2>Talks that failed</h2>", failures(outcomes, decision["winner"])]
    page(path, f"Evaluation of {config.run_name}", parts)


def svg(figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    drawn = text.getvalue()
    return drawn[drawn.index("<svg"):]


def success_picture(scorecard: dict) -> str:
    """Success of each candidate on unseen and on seen wordings, with 95 % intervals."""
    names = list(scorecard)
    figure, axes = plt.subplots(figsize=(7.5, 3.2))
    for offset, key, label, alpha in ((-0.2, "success", "unseen wordings", 1.0), (0.2, "success_seen", "seen wordings", 0.45)):
        cells = [scorecard[n][key] for n in names]
        values = [c["value"] for c in cells]
        errors = [[v - c["low"] for v, c in zip(values, cells, strict=True)], [c["high"] - v for v, c in zip(values, cells, strict=True)]]
        places = [i + offset for i in range(len(names))]
        bars = axes.bar(places, values, 0.38, yerr=errors, capsize=3, alpha=alpha, label=label, color=[COLOURS.get(n, "#555") for n in names], ecolor="#666")
        axes.bar_label(bars, [f"{v:.0%}" for v in values], padding=2)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1.08)
    axes.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    axes.legend(frameon=False, loc="upper left")
    return svg(figure)


def intents(outcomes: dict) -> str:
    """Success by scenario (rows) and candidate (columns), darker is better, n in the row's name."""
    names = list(outcomes)
    rows = sorted({o["scenario"] for o in outcomes[names[0]]["unseen"]})
    grid = [[_mean([o["success"] for o in outcomes[n]["unseen"] if o["scenario"] == row]) for n in names] for row in rows]
    counts = [sum(o["scenario"] == row for o in outcomes[names[0]]["unseen"]) for row in rows]
    figure, axes = plt.subplots(figsize=(7.5, 0.3 * len(rows) + 0.8))
    axes.imshow(grid, cmap="Greens", vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            axes.text(x, y, f"{value:.0%}", ha="center", va="center", color="white" if value > 0.6 else "#222")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(rows)), [f"{r} ({c})" for r, c in zip(rows, counts, strict=True)])
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return svg(figure)


def _mean(values: list) -> float:
    return sum(values) / len(values) if values else 0.0


def by(outcomes: dict, key: str) -> str:
    groups = sorted({o[key] for each in outcomes.values() for o in each["unseen"]})
    rows = []
    for group in groups:
        row = [group]
        for name in outcomes:
            mine = [o["success"] for o in outcomes[name]["unseen"] if o[key] == group]
            low, high = wilson(sum(mine), len(mine))
            row.append(f"{_mean(mine):.0%} [{low:.0%}, {high:.0%}] n {len(mine)}")
        rows.append(row)
    return table([key, *outcomes], rows)


def cell(metric: dict) -> str:
    if metric["value"] is None:
        return '<span class="fail">not evaluated</span>' if metric["gate"] else "not evaluated"
    shown = "{:.2f}" if "unit" in metric else "{:.1%}"
    value, low, high = (shown.format(metric[key]) for key in ("value", "low", "high"))
    text = f"{value} [{low}, {high}]{' ' + metric['unit'] if 'unit' in metric else ''} n {metric['n']}"
    return f'<span class="{metric["gate"]}">{text} · {metric["gate"]}</span>' if metric["gate"] else text


def scores(scorecard: dict, gates: dict) -> str:
    metrics = [key for key in next(iter(scorecard.values())) if key not in APART]
    metrics += [k for row in scorecard.values() for k in row if k not in metrics and k not in APART]
    rows = [[f"{m}" + (f" (gate {gates[m]:g})" if m in gates else ""), *(cell(row[m]) if m in row else "" for row in scorecard.values())] for m in dict.fromkeys(metrics)]
    return table(["metric", *scorecard], rows)


def replies(scorecard: dict) -> str:
    rows = []
    for name, row in scorecard.items():
        for part, line in row["held_out"].items():
            if line["n"]:
                rows.append([name, part, line["n"], line["loss"], *(f"{line[k]['value']:.1%} [{line[k]['low']:.1%}, {line[k]['high']:.1%}]" for k in ("exact", "ranked"))])
    return table(["candidate", "agent sentences", "n", "loss (nats/token)", "greedy reply equals the agent's", "agent's reply ranked first of 10"], rows)


def curves(config) -> str:
    """Over the steps of every stage that trained, from their curve.json: its loss; of ppo the reward, the held-out model's too, and the KL."""
    found = {path.parent.relative_to(config.run_dir): json.loads(path.read_text()) for stage in ("pretrain", "sft", "reward", "dpo", "kto", "ppo", "rloo")
             for path in sorted(stage_dir(config, stage).rglob("curve.json"))}
    if not found:
        return "<p>none</p>"
    figure, axes = plt.subplots(1, len(found), figsize=(2.6 * len(found), 2.4))
    for place, (name, curve) in zip([axes] if len(found) == 1 else axes, found.items(), strict=True):
        for key, colour in (("loss", "#2a7ab0"), ("reward", "#8e5ea2"), ("held_out", "#c2a5cf"), ("kl", "#9aa0a6")) if "held_out" in curve[0] else (("loss", "#2a7ab0"),):
            if key in curve[0]:
                place.plot([e["step"] for e in curve], [e[key] for e in curve], color=colour, label=key)
        if "held_out" in curve[0]:
            place.legend(fontsize=7)
        place.set_title(str(name), fontsize=9)
        place.set_xlabel("step")
    return svg(figure)


def failures(outcomes: dict, winner: str | None) -> str:
    """Ten failed talks of the winner (or the last candidate), one of each scenario first."""
    name = winner or list(outcomes)[-1]
    failed = [o for o in outcomes[name]["unseen"] if not o["success"]]
    groups = defaultdict(list)
    for o in failed:
        groups[o["scenario"]].append(o)
    chosen = [group[i] for i in range(10) for group in groups.values() if i < len(group)][:10]
    parts = [f"<p>{len(failed)} of {len(outcomes[name]['unseen'])} talks of {name} failed.</p>"]
    for o in chosen:
        why = ", ".join([*o["violations"], *(f"unasked {name}" for name in o["unasked"])]) or o["ended"]
        parts.append(talk(f"{html.escape(o['scenario'])}, {o['language']}: {html.escape(why)}", o["messages"]))
    return "\n".join(parts)


def talk(title: str, messages: list[dict]) -> str:
    """A conversation to open and read; what the guard sent is marked."""
    turns = "".join(f'<div class="turn {m["role"]}"><b>{m["role"]}{" · guard: " + m["guard"] if m.get("guard") else ""}</b> {html.escape(m["content"])} {html.escape(_calls(m))}</div>' for m in messages)
    return f"<details><summary>{title}</summary>{turns}</details>"


def _calls(message: dict) -> str:
    return " ".join(f"→ {c['function']['name']}{c['function']['arguments']}" for c in message.get("tool_calls") or [])
