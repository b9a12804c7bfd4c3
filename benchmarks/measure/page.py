"""The results as one Markdown page and one picture."""

from __future__ import annotations

import io

import matplotlib

from benchmarks.measure.bars import bar_text, interval, share, shortfalls, verdict
from benchmarks.measure.tools import ENGINES, SURE
from benchmarks.pii.sets import MARKETS, SETS

matplotlib.use("svg")
import matplotlib.pyplot as plt

ALL, DEFAULT = ENGINES["all"], ENGINES["default"]
OTHERS = (ALL, f"{ALL}, score {SURE} or more", DEFAULT)
DETAILED = ("T2", "T3", "T4", "T5", "T6", "T7", "T8", "T10", "MultiDoGO", "UNER")
BUSY = 1.3                  # load of the machine, this process included, above which two workers cannot be judged
PLACES = {"synth": "presidio-research", "multidogo": "MultiDoGO", "uner": "UNER"}


def percent(pair: list[int] | None) -> str:
    """The share, with two decimals where a thousand cases bear them; never 100 where one was missed, never 0 where one was hit."""
    value = share(pair)
    return "–" if value is None else f"{figure(value, pair[1])} %"


def figure(value: float, n: int) -> str:
    places = 2 if n >= 1000 else 1
    text = f"{100 * value:.{places}f}"
    return f"> {100 - 10 ** -places}" if value < 1 and float(text) == 100 else f"< {10 ** -places}" if value > 0 and float(text) == 0 else text


def with_interval(pair: list[int] | None) -> str:
    if share(pair) is None:
        return "–"
    low, high = interval(pair)
    return f"{percent(pair)} [{figure(low, pair[1])}, {figure(high, pair[1])}]"


def table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def written(results: dict) -> str:
    """The page."""
    made = results["made"]
    parts = [head(made), "![Recall by group, ours beside Presidio](anonymise.svg)", "## Bars", bars(results["rows"], made["presidio"])]
    if results["skipped"]:
        parts.append("Skipped: " + "; ".join(f"{PLACES[name]}: {reason}" for name, reason in results["skipped"].items()) + ".")
    parts += ["## Where it falls short", short(results["rows"], speed_bars(results["speed"]) if results.get("speed") else [])]
    if results.get("speed"):
        parts += ["## Speed", *speed(results["speed"], made["presidio"])]
    if results.get("misses"):
        parts += ["## What of MultiDoGO is missed most", table(["slot, shape, outcome", "times"], [[reason, str(count)] for reason, count in results["misses"]])]
    parts += ["## By group", *(markets(row) for row in results["rows"] if row["key"] == "T1"), *(detail(row) for row in results["rows"] if row["key"] in DETAILED and len(row["groups"]) > 1)]
    return "\n\n".join(parts) + "\n"


def head(made: dict) -> str:
    other = made["presidio"]
    beside = "Presidio was not installed for this run." if not other else (
        f"Presidio {other['versions']['presidio-analyzer']} reads every message by itself, without a language model (so it looks for no names; its context words have no effect), once as it comes "
        f"and once with every recogniser of a European country and of Canada, {other['recognisers']} in all, and 23 phone regions; every score counts, and beside it only {SURE} or more.")
    libraries = ", ".join(f"{name} {version}" for name, version in (made["versions"] | ({f"Presidio's {n}": v for n, v in other["versions"].items()} if other else {})).items())
    return (f"# Anonymisation, measured\n\n`{made['command']}`, {made['date']}, {made['minutes']:.0f} minutes, {made['processors']} processors ({made['machine']}); artefact {made['artefact']}; {libraries}.\n\n"
            "A secret counts as masked where no letter or digit of it survives, whatever it was taken for. *Ours* is what the stage releases: a quarantined case is neither hit nor miss, its share stands "
            "beside. *Detectors* are the same spans on every case, quarantined ones too: the cases the other columns are measured on. Brackets are 95 % Wilson intervals; slots of one conversation count as if they were independent, so theirs are too narrow. *Readable* is a black-box look at "
            f"what was released: cases in which a piece of a secret still stands. {beside} Generated sets are drawn from names that the measured artefact never saw; public data is measured with the shipped one.")


def bars(rows: list[dict], other: dict | None) -> str:
    lines = []
    for row in rows:
        tools = [percent(row["all"].get(tool)) if row["all"].get(tool) else "–" if other or row["source"] == "leaks" else "not installed" for tool in OTHERS]
        leaks = row["source"] == "leaks"
        reads = row["source"] in SETS and not (leaks or row["bad_if_high"] or "alone" in row["title"])
        lines.append([row["key"], row["title"], bar_text(row), with_interval(row["all"].get("ours")), str(row["all"].get("ours", [0, 0])[1]) + f" {row['unit']}s", verdict(row),
                      "–" if leaks else percent(row["quarantined"]), percent(row["readable"]) if reads else "–", percent(row["all"].get("detectors")), *tools])
    return table(["", "what", "bar", "ours [95 %]", "n", "", "quarantined", "readable", "detectors", *OTHERS], lines)


def short(rows: list[dict], fast: list[tuple[str, str, str, bool | None]]) -> str:
    told = [line for row in rows for line in shortfalls(row)]
    told += [f"{row['key']}, {row['title']}: {row['quarantined'][0]} of {row['quarantined'][1]} cases went to quarantine ({', '.join(f'{reason}: {count}' for reason, count in row['reasons'])})"
             for row in one_a_set(rows) if row["reasons"] and row["quarantined"][1] and row["quarantined"][0] > 0.02 * row["quarantined"][1]]
    told += [f"T11, {what}: {value}, the bar is {bar}" for what, bar, value, met in fast if met is False]
    return "\n".join(f"- {line}" for line in told) or "Nowhere in this run."


def one_a_set(rows: list[dict]) -> list[dict]:
    """The first row of every set: quarantine is a set's, not a bar's."""
    return list({row["source"]: row for row in reversed(rows)}.values())[::-1]


def detail(row: dict) -> str:
    tools = [tool for tool in OTHERS if tool in row["all"]]
    lines = [[group, str(c["detectors" if "detectors" in c else "ours"][1]), with_interval(c.get("ours")), *([percent(c["detectors"])] if "detectors" in c else []), *(with_interval(c.get(tool)) for tool in tools)]
             for group, c in row["groups"].items()]
    return f"### {row['key']}: {row['title']}\n\n" + table(["group", "n", "ours", *(["detectors"] if "detectors" in row["all"] else []), *tools], lines)


def markets(row: dict) -> str:
    """T1 as kinds by markets: ours, and behind the stroke Presidio with all countries."""
    kinds = list(dict.fromkeys(group.split()[0] for group in row["groups"]))

    def cell(kind: str, market: str) -> str:
        columns = row["groups"].get(f"{kind} {market}", {})
        return " / ".join(percent(columns[tool]).removesuffix(" %") for tool in ("ours", ALL) if tool in columns) or "–"

    n = max((columns["detectors"][1] for columns in row["groups"].values()), default=0)
    lines = [[market, *(cell(kind, market) for kind in kinds)] for market in MARKETS]
    return f"### T1: {row['title']}\n\nPercent masked, {n} cases a cell: ours" + (f" / {ALL}" if ALL in row["all"] else "") + ".\n\n" + table(["market", *kinds], lines)


def speed(made: dict, other: dict | None) -> list[str]:
    """Rates as MB per CPU second of one core, ratios, start-up, memory and two workers."""
    lines, tools = [], ["ours, structured", "ours, full stage", *([ALL, DEFAULT] if other else [])]
    for corpus, units in made["rates"].items():
        for unit, rate in units.items():
            cells = [f"{rate[tool]:.3f}" if tool in rate else "–" for tool in tools]
            ratios = [f"{rate[mine] / rate[ALL]:.1f} / {rate[mine] / rate[DEFAULT]:.1f}" if other and mine in rate else "–" for mine in tools[:2]]
            lines.append([f"{corpus}, {unit}", f"{rate['texts']} texts, {rate['bytes'] / rate['texts']:.0f} bytes", *cells, *ratios])
    first = table(["texts", "n, mean size", *tools, "structured: times Presidio all / default", "full stage: times"], lines)
    second = table(["process", "start-up, CPU s", "start-up, s", "memory then, MB", "peak memory, MB"],
                   [[name, f"{f['start_cpu']:.2f}", f"{f['start_wall']:.2f}", f"{f['start_mb']:.0f}", f"{f['peak_mb']:.0f}"] for name, f in made["footprints"].items()])
    two = made["scaling"]
    own = ", ".join(f"{corpus}: {units['by conversation']['own_bytes']:.0f} bytes each" for corpus, units in made["rates"].items())
    verdicts = table(["T11", "bar", "measured", ""], [[what, bar, value, {True: "met", False: "missed", None: "not judged: the machine was busy"}[met]] for what, bar, value, met in speed_bars(made)])
    return ["Megabytes per CPU second of one core, best of three passes, the slower of the two corpora against each bar. The full stage is names, stand-ins and leak check too. *By conversation* joins turns to 2.3 kB, which suits Presidio; the full stage reads the "
            f"conversations as they are ({own}).", verdicts, first, second,
            f"Two worker processes against one on {two['conversations']} conversations, start of the processes included: {two['seconds']['1']:.1f} s to {two['seconds']['2']:.1f} s, {two['speed-up']:.2f} times; CPU seconds {two['cpu']['1']:.1f} to {two['cpu']['2']:.1f}"
            f" (load of the machine before: {two['load']:.1f}; other work makes this figure meaningless above {BUSY})."]


def speed_bars(made: dict) -> list[tuple[str, str, str, bool | None]]:
    """(what, bar, measured, met) of T11; None where other work on the machine makes a judgement impossible."""
    def slowest(unit: str, mine: str, beside: str | None = None) -> float | None:
        values = [units[unit][mine] / (units[unit][beside] if beside else 1) for units in made["rates"].values() if beside is None or beside in units[unit]]
        return min(values, default=None)

    own, two = made["footprints"]["ours"], made["scaling"]["speed-up"]
    floors = [("structured by turn, MB/s", 1, slowest("by turn", "ours, structured")), ("structured by conversation, MB/s", 1, slowest("by conversation", "ours, structured")),
              (f"structured by turn, times {ALL}", 20, slowest("by turn", "ours, structured", ALL)), (f"structured by conversation, times {ALL}", 10, slowest("by conversation", "ours, structured", ALL)),
              ("full stage, MB/s", 0.25, slowest("by conversation", "ours, full stage")), ("two workers, times one", 1.6, two)]
    ceilings = [("start-up, CPU s", 1, own["start_cpu"]), ("peak memory, MB", 300, own["peak_mb"])]
    return ([(what, f"≥ {bar:g}", f"{value:.2f}", value >= bar if "workers" not in what or made["scaling"]["load"] <= BUSY else None) for what, bar, value in floors if value is not None]
            + [(what, f"≤ {bar:g}", f"{value:.2f}", value <= bar) for what, bar, value in ceilings])


def picture(results: dict) -> str:
    """Bars of recall, ours beside Presidio, one group of bars a row that measures masking."""
    rows = [row for row in results["rows"] if not row["bad_if_high"] and "alone" not in row["title"] and row["source"] != "leaks" and share(row["all"].get("ours")) is not None][::-1]
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "figure.autolayout": True, "svg.hashsalt": "supportloop"})
    figure, axes = plt.subplots(figsize=(9, 1 + 0.55 * len(rows)))
    for place, (tool, name, colour) in enumerate((("ours", "supportloop", "#1b6f9c"), (ALL, ALL, "#d08b2c"), (DEFAULT, DEFAULT, "#c9c9c9"))):
        known = [(i + 0.27 * (1 - place), row["all"][tool]) for i, row in enumerate(rows) if share(row["all"].get(tool)) is not None]
        values = [share(pair) for _, pair in known]
        if known:
            errors = [[v - interval(p)[0] for v, (_, p) in zip(values, known, strict=True)], [interval(p)[1] - v for v, (_, p) in zip(values, known, strict=True)]]
            axes.barh([y for y, _ in known], values, 0.25, color=colour, label=name, xerr=errors, error_kw={"linewidth": 0.8})
    axes.set_yticks(range(len(rows)), [f"{row['key']}  {row['title']}" for row in rows])
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share of secrets masked, with 95 % intervals")
    if rows:
        axes.legend(loc="upper center", bbox_to_anchor=(0.3, -0.04 - 0.7 / len(rows)), ncols=3, frameon=False)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = drawn.getvalue()
    return "\n".join(line.rstrip() for line in text[text.index("<svg"):].replace("<svg ", '<svg style="background:#fff" ', 1).splitlines()) + "\n"
