"""What words say about the number that follows them: "my card is", "order", "personnummer"; and what is particular to a market."""

from __future__ import annotations

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
def announcing() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """(word → kind, beginning of a word → kind, phrase of several words → kind): what announces which kind of number."""
    rows = [(kind, str(word).casefold()) for kind in ANNOUNCED for word in data("announce.yaml")[kind]]
    rows += [(f"id {code}", str(word).casefold()) for code, market in markets().items() for word in market.cues]
    words = {word: kind for kind, word in rows if not word.endswith("*") and " " not in word}
    begins = {word[:-1]: kind for kind, word in rows if word.endswith("*")}
    phrases = {word: kind for kind, word in rows if " " in word}
    return words, begins, phrases


@functools.cache
def words_for(kind: str) -> frozenset[str]:
    """The words of announce.yaml that ask for a name, an address or a number without saying of what."""
    return frozenset(str(word).casefold() for word in data("announce.yaml")[kind])


@functools.cache
def _phrases() -> re.Pattern:
    return re.compile("|".join(re.escape(phrase) for phrase in sorted(announcing()[2], key=len, reverse=True)))


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
    before = seen[max(0, start - NEAR):start].casefold()
    if start > NEAR and seen[start - NEAR - 1].isalnum():       # begins inside a word
        before = " " * (len(before) - len(before.lstrip("abcdefghijklmnopqrstuvwxyz"))) + before.lstrip("abcdefghijklmnopqrstuvwxyz")
    found = []
    for match in CUE_WORD.finditer(before):
        kind = kind_of_word(match.group())
        for part in match.group().split("-") if kind is None and "-" in match.group() else ():
            kind = kind or kind_of_word(part)
        if kind:
            found.append((match.start(), kind))
    found += [(match.start(), announcing()[2][match.group()]) for match in _phrases().finditer(before)]
    return [kind for _, kind in sorted(found, reverse=True)]
