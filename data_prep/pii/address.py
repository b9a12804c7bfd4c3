"""Street addresses by the words streets are made of, in the languages of `names.yaml`: no library parses them without weights."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from data_prep.pii.lexicon import phrases

_number = r"(?:,? ?(?:nr\.?|n°|no\.?|n\.|č\.)? ?\d{1,4}(?: ?[A-Za-z])?(?![\w]))"
_rest = r"(?:,? (?:[A-Z]{1,2}-)?(?:\d{3} ?\d{2}|\d{4}(?: ?[A-Z]{2})?|\d{2}-\d{3}) [^\W\d_][\w'’-]+)?"          # post code and town
_uk_postcode = re.compile(r"(?<![\w])(?:[A-Z]{1,2}\d[A-Z\d]?) ?\d[ABD-HJLNP-UW-Z]{2}(?![\w])", re.IGNORECASE)


@functools.cache
def _patterns() -> tuple[re.Pattern, re.Pattern, re.Pattern]:
    def words(kind: str) -> str:
        every = {word for table in phrases().values() for word in table.get(kind, [])}
        return "|".join(re.escape(word) for word in sorted(every, key=len, reverse=True)) or r"(?!)"

    name = r"[^\W\d_][\w'’.-]*"
    joined = re.compile(rf"(?<!\w)(?:{name} ){{0,1}}[^\W\d_]{{2,20}}(?:{words('streets_joined')}){_number}{_rest}", re.IGNORECASE)
    after = re.compile(rf"(?<!\w)(?:\d{{1,4}}[A-Za-z]? (?:{name} ){{1,3}}(?:{words('streets_after')})(?!\w)|(?-i:[^\W\d_a-zß-ÿ][\w'’-]+ ){{1,3}}(?:{words('streets_after')}){_number}){_rest}", re.IGNORECASE)
    before = re.compile(rf"(?<!\w)(?:\d{{1,4}},? )?(?:{words('streets_before')})\.? (?:{name} ){{0,4}}{name}{_number}{_rest}"
                        rf"|(?<!\w)\d{{1,4}},? (?:{words('streets_before')}) (?:{name} ){{0,3}}{name}", re.IGNORECASE)
    return joined, after, before


_digit = re.compile(r"\d")


def addresses(seen: str, market: str | None) -> Iterator[tuple[int, int]]:
    """Where a street with its number stands, with post code and town where they follow."""
    windows = []
    for match in _digit.finditer(seen):          # a number is part of every address: look only around numbers
        low, high = max(0, match.start() - 60), min(len(seen), match.end() + 60)
        if windows and low <= windows[-1][1]:
            windows[-1][1] = high
        else:
            windows.append([low, high])
    for low, high in windows:
        for pattern in _patterns():
            for match in pattern.finditer(seen, low, high):
                yield match.span()
    if market == "GB":
        for match in _uk_postcode.finditer(seen):
            yield match.span()
