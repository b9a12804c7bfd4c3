"""The report of the stage `anonymise`: what was masked, by whom it was found, what is in quarantine, what may be claimed."""

from __future__ import annotations

import html
from collections import Counter
from pathlib import Path

from data_prep.conversation import write_json
from data_prep.report import page, table
from data_prep.statistics import wilson


def write_report(folder: Path, report: dict) -> None:
    """report.json and report.html. No text of a customer is in either."""
    write_json(folder / "report.json", report)
    planted, removed = report["canaries"]["planted"], report["canaries"]["removed"]
    low, high = wilson(planted - removed, planted)
    total = report["conversations"] + report["quarantined"]
    page(folder / "report.html", "Anonymisation", [
        f"<p><b>{report['conversations']}</b> conversations released, <b>{report['quarantined']}</b> quarantined ({report['quarantined'] / max(1, total):.2%}), {report['feedback']} ratings, thumbs and edits. "
        f"Mode {report['mode']}, stand-ins stable within one {report['scope']}.</p>",
        f"<p>The output is <b>{html.escape(report['claim'])}</b>.</p>",
        f"<p>Canaries: {planted} made-up customers travelled with the archive, {removed} came out without a trace ({planted - removed} did not: {low:.2%} to {high:.2%} at 95 %). "
        "They say that the machinery works, not how much of your customers is left: that is known once two people have read a sample, <code>python -m data_prep.review</code>.</p>",
        "<h2>Masked, by kind and language</h2>", _grid(report["counts"]),
        "<h2>By detector</h2>", table(["detector", "spans", "of them nobody else's"], _detectors(report["counts"])),
        "<h2>Detectors that found the same</h2>", table(["detectors", "spans"], sorted(_agreement(report["counts"]).items(), key=lambda item: -item[1])),
        "<h2>Quarantine</h2>", table(["reason", "conversations"], sorted(report["reasons"].items(), key=lambda item: -item[1])),
        "<h2>Read</h2>", table(["what", "count"], sorted(report["input"].items())),
        "<h2>Lineage</h2>", table(["what", "value"], [("fitted artefact", report["fit"]), ("key id", report["key"]), ("vault", "yes, encrypted" if report["vault"] else "none")])])


def _split(counts: dict[str, int]):
    for name, count in counts.items():
        kind, language, detectors = name.split("|")
        yield kind, language, detectors.split("+"), count


def _grid(counts: dict[str, int]) -> str:
    """Kinds by languages, each cell shaded by its share of the language."""
    cells, per_language = Counter(), Counter()
    for kind, language, _, count in _split(counts):
        cells[kind, language] += count
        per_language[language] += count
    languages, kinds = sorted(per_language), sorted({kind for kind, _ in cells})
    if not kinds:
        return "<p>nothing</p>"
    rows = ["<tr><th>kind</th>" + "".join(f'<th class="n">{html.escape(language)}</th>' for language in languages) + '<th class="n">all</th></tr>']
    for kind in kinds:
        shades = [f'<td class="n" style="background:rgba(60,130,220,{0.6 * cells[kind, language] / per_language[language]:.2f})">{cells[kind, language] or ""}</td>' for language in languages]
        rows.append(f"<tr><td>{kind}</td>{''.join(shades)}<td class='n'>{sum(cells[kind, language] for language in languages)}</td></tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _detectors(counts: dict[str, int]) -> list[tuple[str, int, int]]:
    found, alone = Counter(), Counter()
    for _, _, detectors, count in _split(counts):
        for detector in detectors:
            found[detector] += count
        if len(detectors) == 1:
            alone[detectors[0]] += count
    return [(detector, count, alone[detector]) for detector, count in found.most_common()]


def _agreement(counts: dict[str, int]) -> Counter:
    agreed = Counter()
    for _, _, detectors, count in _split(counts):
        if len(detectors) > 1:
            agreed[" and ".join(detectors)] += count
    return agreed
