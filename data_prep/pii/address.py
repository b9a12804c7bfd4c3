"""Street addresses by the words streets are made of, in the languages of `names.yaml`: no library parses them without weights."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from data_prep.pii.lexicon import phrases
from data_prep.pii.names import WORD

REACH = 48          # characters on either side of a house number in which its street stands
_digit = re.compile(r"\d")
_house = re.compile(r"(?<![\w.,/:-])\d{1,4}(?:/\d{1,3}(?!\d|/))?(?: ?[A-Za-z](?!\w))?(?![\w/:-]|[.,]\d)")
_to_house = re.compile(r",? ?(?:nr\.?|n°|nº|no\.?|n\.|č\.|num\.)? ?|\.? ")
_rest = re.compile(r",? (?:[A-Z]{1,2}-)?(?:\d{3} ?\d{2}|\d{4}(?: ?[A-Z]{2})?|\d{2}-\d{3}) [^\W\d_][\w'’-]+")          # post code and town
_uk_postcode = re.compile(r"(?<!\w)(?:[A-Z]{1,2}\d[A-Z\d]?) ?\d[ABD-HJLNP-UW-Z]{2}(?!\w)", re.IGNORECASE)
_small = {"de", "la", "le", "les", "du", "des", "del", "della", "dei", "di", "da", "do", "dos", "das", "van", "der", "den", "het", "of", "the", "el", "los", "las", "l", "d", "al", "san", "e", "y", "i", "na", "af", "und"}


@functools.cache
def street_words(language: str) -> tuple[tuple[str, ...], frozenset[str], frozenset[str], frozenset[str]]:
    """(endings of a street's own word, words that come last, words that come first, those of all languages)."""
    def every(kind: str) -> frozenset[str]:
        return frozenset(word.strip(".") for code in (language, "en") for word in phrases().get(code, {}).get(kind, []))

    everywhere = frozenset(word.strip(".") for table in phrases().values() for kind in ("streets_before",) for word in table.get(kind, []) if len(word) > 2)
    known_short = {"ul", "al", "pl", "av", "bd", "rd", "st"}
    before, after = (frozenset(word for word in every(kind) if len(word) > 2 or word in known_short) for kind in ("streets_before", "streets_after"))
    joined = {word for word in every("streets_joined") if len(word) > 2} | {word for table in phrases().values() for word in table.get("streets_joined", []) if len(word) > 4}
    return tuple(joined), after, before, everywhere


def addresses(seen: str, market: str | None, language: str = "en") -> Iterator[tuple[int, int]]:
    """Where a street with its number stands, with post code and town where they follow."""
    for match in _house.finditer(seen):
        start, end = match.span()
        begin = _street_before_number(seen, start, language)
        if begin is not None:
            yield begin, _with_town(seen, end)
        stop = _street_after_number(seen, end, language)
        if stop is not None:
            yield start, _with_town(seen, stop)
    if market == "GB":
        for match in _uk_postcode.finditer(seen):
            yield match.span()


def _street_before_number(seen: str, number: int, language: str) -> int | None:
    """Where the street begins whose house number stands at `number`: "Lindenstraße 7", "Church Lane 7", "rue de la Paix 7"."""
    joined, after, before, everywhere = street_words(language)
    words = [m for m in WORD.finditer(seen, max(0, number - REACH), number) if "\n" not in seen[m.end():number]][-6:]
    while words and words[-1].group().casefold() in ("nr", "n", "no", "č", "num"):
        words.pop()
    if not words or _to_house.fullmatch(seen, words[-1].end(), number) is None:
        return None
    last = words[-1].group().casefold()
    if last.endswith(joined) and last not in joined and len(last) > 5:
        return words[-1].start()
    if last in after and len(words) > 1 and not _digit.search(seen, words[-2].end(), number):
        first = len(words) - 1
        while first and words[first - 1].group()[0].isupper() and len(words) - first < 4 and seen[words[first - 1].end():words[first].start()] == " ":
            first -= 1
        return words[first].start() if first < len(words) - 1 else None
    for place in range(len(words) - 2, -1, -1):
        word = words[place].group().casefold()
        if (word in before or (word in everywhere and words[place + 1].group()[0].isupper() and place == len(words) - 2)) and not _digit.search(seen, words[place].end(), number):
            between = words[place + 1:]
            if (len(between) <= 2 and word != "the") or all(word.group()[0].isupper() or word.group().casefold() in _small for word in between):
                return words[place].start()
    return None


def _street_after_number(seen: str, number_end: int, language: str) -> int | None:
    """Where the street ends that begins right behind a house number: "14 Church Lane", "12, rue de la Paix"."""
    _, after, before, _ = street_words(language)
    words = list(WORD.finditer(seen, number_end, number_end + REACH))[:6]
    if not words or seen[number_end:words[0].start()] not in (" ", ", "):
        return None
    for place in range(1, min(4, len(words))):
        if seen[words[place - 1].end():words[place].start()] != " ":
            break
        if words[place].group().casefold() in after and (words[0].group()[0].isupper() or place == 1):
            return words[place].end()
    if words[0].group().casefold() in before:
        stop = 0
        while stop + 1 < len(words) and seen[words[stop].end():words[stop + 1].start()] in (" ", ". ", "'", "-", "’") and (words[stop + 1].group()[0].isupper() or words[stop + 1].group().casefold() in _small or stop == 0):
            stop += 1
        return words[stop].end() if stop else None
    return None


def _with_town(seen: str, end: int) -> int:
    match = _rest.match(seen, end)
    return match.end() if match else end
