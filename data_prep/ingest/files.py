"""What every adapter needs of a file: its objects one by one with the place where each stands, moments, and HTML as text."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from data_prep.artifacts import StageError
from data_prep.conversation import read_jsonl

BREAKS = {"p", "div", "br", "li", "ul", "ol", "tr", "table", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6"}
UNSPOKEN = {"script", "style", "head", "title"}


def objects(path: str | None, key: str, page: str | None = None) -> Iterator[tuple[str, object]]:
    """Yield (where, object or None where it is not JSON) of a `.jsonl`, `.jsonl.gz` or `.json`; the last is read whole.

    An object that holds a list under `page` is one page of a helpdesk's API: its entries are yielded instead of it.
    Raises: StageError naming the configuration's `key` where there is no such file.
    """
    if not path or not Path(path).is_file():
        raise StageError(f"{key}={path} is no file: give the path of a .jsonl, .jsonl.gz or .json")
    for where, value in _values(Path(path)):
        entries = value.get(page) if page and isinstance(value, dict) else None
        if isinstance(entries, list):
            yield from ((f"{where} {page} {number}", entry) for number, entry in enumerate(entries, 1))
        else:
            yield where, value


def _values(path: Path) -> Iterator[tuple[str, object]]:
    if path.suffix != ".json":
        for number, value in read_jsonl(path):
            yield f"{path.name} line {number}", value
        return
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except ValueError:
        value = None
    if isinstance(value, list):
        yield from ((f"{path.name} entry {number}", entry) for number, entry in enumerate(value, 1))
    else:
        yield path.name, value


def moment(value: object) -> datetime.datetime | None:
    """A point in time out of ISO 8601 text, seconds since 1970 or a datetime; without a zone it is UTC. None where it is none of these."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.datetime.fromtimestamp(value, datetime.UTC)
        if isinstance(value, str):
            value = datetime.datetime.fromisoformat(value.strip().removesuffix(" UTC"))
        if not isinstance(value, datetime.datetime):
            return None
        return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return None


def stamp(value: object) -> str | None:
    """The same moment as the archive writes it: 2026-03-01T09:12:00Z."""
    found = moment(value)
    return found and found.strftime("%Y-%m-%dT%H:%M:%SZ")


class _Spoken(HTMLParser):
    """Collects what a reader would see, a line break for each block."""

    def __init__(self):
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.hidden += tag in UNSPOKEN
        if tag in BREAKS:
            self.parts.append("\n- " if tag == "li" else "\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in UNSPOKEN and self.hidden > 0
        if tag in BREAKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(re.sub(r"\s+", " ", data))


def plain(html: str) -> str:
    """HTML as text: paragraphs, breaks and list items keep their lines, everything else loses its marks."""
    parser = _Spoken()
    parser.feed(html)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line and line != "-")
