"""The look of the HTML reports: one self-contained page, tables, and pictures as inline SVG."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from pathlib import Path

STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}
table{border-collapse:collapse;width:100%;font-size:.92rem}th,td{padding:.35rem .6rem;text-align:left;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.pass{color:#18794e}.fail{color:#cd2b31;font-weight:600}
.wide{overflow-x:auto}svg{max-width:100%;height:auto}details{margin:.5rem 0}.turn{margin:.2rem 0;padding:.3rem .6rem;border-left:3px solid var(--line)}
.assistant{background:var(--soft)}
"""


def page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write one page, whole or not at all. `parts` are HTML."""
    body = "\n".join(parts)
    text = (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>{body}</body></html>")
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def table(head: list[str], rows: Iterable[Iterable[object]]) -> str:
    """An HTML table; cells that start with "<" are HTML already, numbers stand to the right."""
    rows = [list(row) for row in rows]
    if not rows:
        return "<p>none</p>"
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    lines = ["<tr>" + "".join(f'<th class="{"n" if n else ""}">{html.escape(h)}</th>' for h, n in zip(head, numeric, strict=True)) + "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(f'<td class="{"n" if n else ""}">{_cell(v)}</td>' for v, n in zip(row, numeric, strict=True)) + "</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if text.startswith("<") else html.escape(text)
