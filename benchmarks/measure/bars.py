"""What is measured and what it must reach: one row a bar, ours and every other tool on the same cases. Pure functions.

A bar's `hits` looks at a case and what a tool found in it, and gives (group, success) for every unit: a case, a secret,
a piece that must stay. Masking counts whatever the label. A quarantined case is neither hit nor miss: it left nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import NamedTuple

from benchmarks.measure.public import ADDRESSABLE, PERSONAL, shape
from benchmarks.pii.score import Found, covered, masked, touched, untouched
from data_prep.statistics import wilson

Hits = Callable[[dict, Found], Iterable[tuple[str, bool]]]


class Bar(NamedTuple):
    """`least`: the share must reach it; `most`: must not pass it; `each`: every group must reach it; all None: for information."""

    key: str
    title: str
    source: str
    unit: str
    hits: Hits
    least: float | None = None
    most: float | None = None
    each: dict[str, float] | float | None = None

    @property
    def bad_if_high(self) -> bool:
        return self.most is not None or "touched" in self.title


def of_case(group: Callable[[dict], str]) -> Hits:
    """Is all of a case's secrets masked? Cases without any are left out."""
    return lambda case, found: [(group(case), masked(case, found))] if case["spans"] else []


def of_secret(group: Callable[[dict], str]) -> Hits:
    return lambda case, found: [(group(case), covered(case, span, found)) for span in case["spans"]]


def of_label(kept: Callable[[str], bool]) -> Hits:
    """The same for every labelled span, by its label."""
    return lambda case, found: [(span[3], covered(case, span, found)) for span in case["spans"] if kept(span[3])]


def was_touched(group: Callable[[dict], str], names_only: bool = False) -> Hits:
    return lambda case, found: [(group(case), touched(case, only_names(found) if names_only else found))]


def stayed(group: Callable[[dict], str]) -> Hits:
    def hits(case: dict, found: Found) -> list[tuple[str, bool]]:
        free, of = untouched(case, found)
        return [(group(case), True)] * free + [(group(case), False)] * (of - free)
    return hits


def o_tokens(case: dict, found: Found) -> list[tuple[str, bool]]:
    """Of the tokens that people labelled as nothing: does anything found reach into them?"""
    hits = []
    for index, start, end, label in case["spans"]:
        at = start
        for token in case["messages"][index]["content"][start:end].split(" ") if label == "O" else ():
            hits.append((case["group"], any(a < at + len(token) and at < b for a, b, *_ in found[index])))
            at += len(token) + 1
    return hits


def no_person(case: dict, found: Found) -> list[tuple[str, bool]]:
    return [] if case["spans"] else [(case["language"], any(only_names(found)))]


def only_names(found: Found) -> Found:
    return [[span for span in each if span[2] in ("name", "PERSON")] for each in found]


def group_of(case: dict) -> str:
    return case["group"]


def first_word(case: dict) -> str:
    return case["group"].split()[0]


def language_of(case: dict) -> str:
    return case["language"]


def named(writing: str) -> Hits:
    return lambda case, found: [(case["language"], masked(case, found))] if case["group"].endswith(writing) and case["spans"] else []


BARS = (
    Bar("T1", "identifiers of 23 markets", "structured", "value", of_case(group_of), least=0.999, each=0.999),
    Bar("T2", "pattern-addressable types, presidio-research", "synth", "value", of_label(ADDRESSABLE.__contains__), least=0.95),
    Bar("T2", "its other types (no bar)", "synth", "value", of_label(lambda label: label not in ADDRESSABLE)),
    Bar("T3", "adversarial inputs", "adversarial", "case", of_case(group_of), least=0.97, each={"": 0.9, "digits in words": 0.8}),
    Bar("T4", "hard negatives touched", "hard_negatives", "case", was_touched(group_of), most=0.03),
    Bar("T5", "names that the helpdesk knows", "names_known", "case", of_case(group_of), least=0.995),
    Bar("T5", "ordinary words that are somebody's name, left alone", "names_known", "piece", stayed(group_of)),
    Bar("T6", "unknown names, as written", "names_unknown", "case", named("cased"), least=0.92),
    Bar("T6", "unknown names, all in small letters", "names_unknown", "case", named("lower"), least=0.75),
    Bar("T6", "name-free turns touched by a name", "name_free", "turn", was_touched(language_of, names_only=True), most=0.03),
    Bar("T6", "name-free turns touched by anything", "name_free", "turn", was_touched(language_of)),
    Bar("T7", "secrets told over several turns", "split_over_turns", "case", of_case(group_of), least=0.95),
    Bar("T8", "structured secrets in 37 languages", "all_languages", "secret", of_secret(language_of), least=0.95, each=0.95),
    Bar("kept", "order numbers, amounts and products left alone beside a secret", "kept", "piece", stayed(language_of)),
    Bar("kept", "the secret beside them", "kept", "case", of_case(language_of)),
    Bar("MultiDoGO", "customers' personal slots, labelled by people", "multidogo", "slot", of_label(PERSONAL.__contains__)),
    Bar("MultiDoGO", "tokens labelled as nothing, touched", "multidogo", "token", o_tokens),
    Bar("UNER", "people in real sentences, most of them news", "uner", "name", of_secret(language_of)),
    Bar("UNER", "sentences without people touched by a name", "uner", "sentence", no_person),
)


def measured(bar: Bar, cases: list[dict], ours: list[dict], others: list[dict]) -> dict:
    """One row: {"ours": [successes, n], "detectors": …, tool: …} under "all" and under each of "groups".

    ours: of released cases only; detectors: our spans on every case, which is what the other tools are measured on too.
    """
    tallies: dict[str, dict[str, Counter]] = {}
    quarantined = used = leaked = released = 0
    reasons: Counter[str] = Counter()

    def count(column: str, case: dict, found: Found) -> bool:
        hits = list(bar.hits(case, found))
        for group, success in hits:
            for name in (group, ""):
                tallies.setdefault(name, {}).setdefault(column, Counter()).update(n=1, good=success)
        return bool(hits)

    for case, mine, theirs in zip_longest(cases, ours, others):
        if not count("detectors", case, mine["found"]):
            continue
        used += 1
        quarantined += not mine["released"]
        reasons.update(mine["reasons"])
        if mine["released"]:
            count("ours", case, mine["found"])
            released, leaked = released + 1, leaked + bool(mine["readable"])
        for tool, found in theirs.items():
            count(tool, case, found)
    shares = {group: {column: [c["good"], c["n"]] for column, c in columns.items()} for group, columns in tallies.items()}
    total = shares.pop("", {})
    return {**bar._asdict(), "hits": None, "bad_if_high": bar.bad_if_high, "quarantined": [quarantined, used], "reasons": reasons.most_common(5), "readable": [leaked, released], "all": total, "groups": dict(sorted(shares.items()))}


def share(pair: list[int] | None) -> float | None:
    return pair[0] / pair[1] if pair and pair[1] else None


def interval(pair: list[int]) -> tuple[float, float]:
    return wilson(*pair)


def verdict(row: dict) -> str:
    """met or missed, by the measured share; nothing where there is no bar."""
    value = share(row["all"].get("ours"))
    if row["least"] is None and row["most"] is None:
        return "–"
    if value is None:
        return "not measured"
    return "met" if (row["least"] is None or value >= row["least"]) and (row["most"] is None or value <= row["most"]) else "missed"


def least_of(row: dict, group: str) -> float | None:
    """The bar of one group."""
    each = row["each"]
    return min(value for word, value in each.items() if word in group) if isinstance(each, dict) else each


def shortfalls(row: dict) -> list[str]:
    """Sentences on where we fall short of a bar or behind another tool, worst first."""
    title, told = f"{row['key']}, {row['title']}", []
    if verdict(row) == "missed":
        told.append(f"{title}: {share(row['all']['ours']):.3f}, the bar is {bar_text(row)}")
    low = [(share(c.get("ours")), group) for group, c in row["groups"].items() if least_of(row, group) is not None and share(c.get("ours")) is not None and share(c["ours"]) < least_of(row, group)]
    if low:
        told.append(f"{title}: {len(low)} of {len(row['groups'])} groups below their own bar: " + ", ".join(f"{group} {value:.3f}" for value, group in sorted(low)))
    unseen = [group for group, c in row["groups"].items() if "detectors" in c and "ours" not in c]
    if unseen:
        told.append(f"{title}: of {len(unseen)} groups nothing was released, so the figures above leave them out: " + ", ".join(unseen))
    behind = []
    for group, columns in [("all together", row["all"]), *row["groups"].items()]:
        mine, best = share(columns.get("ours")), [(v, tool) for tool, pair in columns.items() if tool not in ("ours", "detectors") and (v := share(pair)) is not None]
        if mine is None or not best:
            continue
        value, tool = (min if row["bad_if_high"] else max)(best, key=lambda pair: pair[0])
        if (mine > value) if row["bad_if_high"] else (mine < value):
            behind.append((abs(mine - value), f"{group} {mine:.3f} against {value:.3f} ({tool})"))
    if behind:
        told.append(f"{title}: behind another tool in {len(behind)} of {len(row['groups']) + 1} rows, widest first: " + "; ".join(text for _, text in sorted(behind, reverse=True)[:5]))
    return told


def bar_text(row: dict) -> str:
    return f"≥ {row['least']:g}" if row["least"] is not None else f"≤ {row['most']:g}" if row["most"] is not None else "none"


def misses(cases: list[dict], ours: list[dict], most: int = 10) -> list[tuple[str, int]]:
    """What of MultiDoGO's personal slots was missed most: label, shape of the value and whether a part was masked; never a value."""
    return Counter(described(case, span, mine["found"]) for case, span, mine in missed(cases, ours)).most_common(most)


def missed(cases: list[dict], ours: list[dict]) -> list[tuple]:
    return [(case, span, mine) for case, mine in zip(cases, ours, strict=True) if mine["released"] for span in case["spans"] if span[3] in PERSONAL and not covered(case, span, mine["found"])]


def described(case: dict, span: list, found: Found) -> str:
    index, start, end, label = span
    part = any(a < end and start < b for a, b, *_ in found[index])
    return f"{label}, {shape(case['messages'][index]['content'][start:end])}, {'a part masked' if part else 'nothing masked'}"
