"""Names by the shape of what stands around them: spelled letter by letter, under a key of JSON, in a column of a table, before a mail address."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_prep.pii.announce import words_for

# L, I, N, D – or L for Lima, I as in India
_letters = re.compile(r"\W*(?:(?<!\w)[^\W\d_](?!\w)(?: (?:wie|for|as in|like|som i|som|comme|come|de|como|jak|van|mint|kuin) [^\W\d_]+)?\W{0,3}){2,}")
_only_letters = re.compile(r"\W*(?:(?<!\w)[^\W\d_](?!\w)\W{0,3})+")
_spelled = re.compile(r"(?<![\w-])[A-Za-zÀ-ž](?:([ .,-]{1,2})(?:['’]\1)?[A-Za-zÀ-ž])(?:\1(?:['’]\1)?[A-Za-zÀ-ž]){2,}(?![\w-])")          # "O ' H a r a" too
_in_json = re.compile(r'"(?:(?:first|last|full|sur|family|given|middle|customer|holder|card_?holder|account_?holder|contact|recipient|user|agent|display)_?-? ?)?name"\s*:\s*"([^"\x1e]{2,60})"', re.IGNORECASE)
_before_mail = re.compile(r"(?<![\w'’.-])([^\W\d_][\w'’.-]{0,30}(?: [^\W\d_][\w'’.-]{0,30}){0,3}) ?<[^<>\s@]{1,64}@")


def is_letters(seen: str, low: int, high: int) -> bool:
    """Whether a message is nothing but a word told letter by letter."""
    return high - low <= 200 and _letters.fullmatch(seen, low, high) is not None


def names_by_shape(seen: str, bounds: list[tuple[str, int, int]]) -> Iterator[tuple[int, int, str]]:
    """(start, end, detector) of names in the text of a conversation. bounds: (role, start, end) of its messages in it."""
    yield from ((*match.span(), "pattern") for match in _spelled.finditer(seen))
    yield from ((start, end, "pattern") for start, end in _letter_by_letter(seen, bounds))
    yield from ((*match.span(1), "cue") for match in (*_in_json.finditer(seen), *_before_mail.finditer(seen)))
    yield from ((start, end, "cue") for start, end in _columns(seen))


def _letter_by_letter(seen: str, bounds: list[tuple[str, int, int]]) -> Iterator[tuple[int, int]]:
    """A name sent in messages of single letters, three different ones at least, whatever the agent says in between: "b", "e", "r g"."""
    run: list[tuple[int, int]] = []
    for role, low, high in [*bounds, ("user", 0, 0)]:
        if role == "user" and _only_letters.fullmatch(seen, low, high):
            run.append((low, high))
        elif role == "user":
            if len(run) > 1 and len({c for a, b in run for c in seen[a:b].casefold() if c.isalpha()}) >= 3:
                yield from run
            run = []


def _columns(seen: str) -> Iterator[tuple[int, int]]:
    """Names in the rows of a table that somebody pasted, by the head of their column."""
    columns: list[int] = []
    position = 0
    for line in seen.split("\n") if "\n" in seen else ():
        mark = max(";|,\t", key=line.count)
        cells = line.split(mark) if mark in line else [line]
        named = [i for i, cell in enumerate(cells) if cell.strip(' "').casefold() in words_for("name")] if len(cells) > 1 else []
        place = position
        for i, cell in enumerate(cells):
            if columns and not named and i in columns and len(cells) > max(columns) and 1 < len(cell.strip()) < 60:
                yield place, place + len(cell)
            place += len(cell) + 1
        columns = named or (columns if len(cells) > 1 else [])
        position += len(line) + 1
