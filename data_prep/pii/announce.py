"""What words say about the number that follows them: "my card is", "order", "personnummer"; and what is particular to a market."""

from __future__ import annotations

import bisect
import functools
import importlib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from stdnum import luhn

NEAR = 40               # a word announces what follows within so many characters
ANNOUNCED = ("business", "card", "account", "phone", "mail", "document", "secret", "device", "address_of_network", "version", "amount")
CUE_WORD = re.compile(r"[^\W_]+(?:[-'][^\W\d_]+)*")


@functools.cache
def data(name: str) -> dict:
    """A YAML file of this folder, read once."""
    return yaml.load((Path(__file__).parent / name).read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@dataclass(frozen=True)
class Market:
    """What is particular to one country: how its ids are checked, and how its people write phone numbers."""

    checks: tuple
    digits: frozenset[int]          # lengths of ids that are digits alone
    shape: re.Pattern | None        # how ids with letters are written
    bare_phone: bool                # phone numbers are dialled without a leading 0
    cues: tuple[str, ...]


@functools.cache
def markets() -> dict[str, Market]:
    own = {"taj": is_taj, "nino": lambda text: not text.isdigit(), "samordningsnummer": is_samordningsnummer}
    return {code: Market(checks=(*(importlib.import_module(f"stdnum.{name}").is_valid for name in row.get("ids", [])), *(own[name] for name in row.get("own", []))),
                         digits=frozenset(row.get("digits", [])), shape=re.compile(rf"(?<![A-Za-z0-9])(?:{row['shape']})(?![A-Za-z0-9])", re.IGNORECASE) if "shape" in row else None,
                         bare_phone=row.get("bare_phone", False), cues=tuple(row["cues"])) for code, row in data("markets.yaml")["markets"].items()}


def is_taj(digits: str) -> bool:
    """Hungarian social security number (TAJ): weights 3 and 7 in turn, modulo 10."""
    return len(digits) == 9 and sum(int(d) * (7 if i % 2 else 3) for i, d in enumerate(digits[:8])) % 10 == int(digits[8])


def is_samordningsnummer(digits: str) -> bool:
    """Swedish coordination number: a personnummer whose day of birth is raised by 60 (Skatteverket SKV 704)."""
    short = digits[-10:]
    return len(digits) in (10, 12) and 61 <= int(short[4:6]) <= 91 and 1 <= int(short[2:4]) <= 12 and luhn.is_valid(short)


@functools.cache
def announcing() -> tuple[dict[str, str], dict[str, str], dict[str, list[tuple[str, str]]]]:
    """(word → kind, beginning of a word → kind, first word → [(phrase of several words, kind)], the longest first): what announces which kind of number."""
    rows = [(kind, str(word).casefold()) for kind in ANNOUNCED for word in data("announce.yaml")[kind]]
    rows += [(f"id {code}", str(word).casefold()) for code, market in markets().items() for word in market.cues]
    words = {word: kind for kind, word in rows if not word.endswith("*") and " " not in word}
    begins = {word[:-1]: kind for kind, word in rows if word.endswith("*") and " " not in word}
    phrases: dict[str, list[tuple[str, str]]] = {}
    for kind, phrase in sorted(((kind, word.rstrip("*")) for kind, word in rows if " " in word), key=lambda row: -len(row[1])):
        phrases.setdefault(CUE_WORD.match(phrase).group(), []).append((phrase, kind))
    return words, begins, phrases


@functools.cache
def words_for(kind: str) -> frozenset[str]:
    """The words of announce.yaml that ask for a name, an address or a number without saying of what."""
    return frozenset(str(word).casefold() for word in data("announce.yaml")[kind])


@functools.lru_cache(1 << 16)
def kind_of_word(word: str) -> str | None:
    if len(word) > 40:
        return None
    words, begins, _ = announcing()
    known = words.get(word) or next((begins[word[:n]] for n in range(len(word), 2, -1) if word[:n] in begins), None)
    if known or len(word) < 5:
        return known
    for swapped in (word[:i] + word[i + 1] + word[i] + word[i + 2:] for i in range(min(len(word) - 1, 8))):          # "mboil", "tleefon"
        if swapped in words or any(swapped[:n] in begins for n in range(5, len(word) + 1)):
            return words.get(swapped) or next(begins[swapped[:n]] for n in range(len(word), 4, -1) if swapped[:n] in begins)
    return None


def announced(seen: str, start: int) -> list[str]:
    """The kinds of number that the words right before `start` announce, the nearest first."""
    starts, cues = _cues(seen)
    kinds = [kind for _, end, kind in reversed(cues[bisect.bisect_left(starts, start - NEAR):bisect.bisect_left(starts, start)]) if end <= start]
    if start and seen[start - 1].isalnum() and (label := _label.search(seen, max(0, start - NEAR), start)) and (kind := _kind_of(label.group().casefold())):          # "card4111": a part of a word
        kinds.insert(0, kind)
    return kinds


_label = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*\Z")


@functools.lru_cache(4)          # one text is asked about many times in a row
def _cues(seen: str) -> tuple[list[int], list[tuple[int, int, str]]]:
    """(where each begins, (start, end, kind)) of the words and phrases of a text that announce something."""
    found, small, covered = [], in_small_letters(seen), 0
    for match in CUE_WORD.finditer(small):
        meaning = _meanings[match.group()]
        if meaning is None:
            continue
        start, (own, phrases) = match.start(), meaning
        phrase, kind = next(((phrase, kind) for phrase, kind in phrases if small.startswith(phrase, start)), (None, None))
        if phrase:
            covered = start + len(phrase)
            found.append((start, covered, kind))
        elif own and start >= covered:          # a "gift card" is no card
            found.append((start, match.end(), own))
    found.sort(key=lambda cue: (cue[0], cue[2]))
    return [start for start, _, _ in found], found


class _Meanings(dict):
    """Word → (kind that it announces or None, phrases that begin with it); None for most words."""

    def __missing__(self, word: str) -> tuple[str | None, list] | None:
        own, phrases = _kind_of(word.casefold()), announcing()[2].get(word, ())
        if len(self) < 1 << 18:          # a process reads archives of any length
            self[word] = (own, phrases) if own or phrases else None
        return (own, phrases) if own or phrases else None


_meanings = _Meanings()


def in_small_letters(text: str) -> str:
    """The text in small letters, letter by letter, so that offsets stay ("İ".lower() is two characters)."""
    small = text.lower()
    return small if len(small) == len(text) else "".join(c.lower()[0] for c in text)


def _kind_of(word: str) -> str | None:
    """The kind that a word announces, or a part of it between hyphens."""
    kind = kind_of_word(word)
    for part in word.split("-") if kind is None and "-" in word else ():
        kind = kind or kind_of_word(part)
    return kind
