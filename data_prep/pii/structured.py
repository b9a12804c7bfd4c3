"""Structured identifiers in one text: e-mail addresses, IBANs, cards, national ids of 23 markets, phones.

One scan proposes candidates, validators decide: checksum and issuer for cards (ISO/IEC 7812), length by country and mod
97 for IBANs (ISO 13616), python-stdnum for national ids, phonenumbers for phones. A number that its words announce ("my
card is …") is taken even where the checksum fails, for customers mistype; a business word in front ("order", "tracking")
keeps a number out that has no checksum to speak for it.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import phonenumbers
import yaml
from stdnum import iban, luhn

NEAR = 32               # a word announces what follows within so many characters
LONGEST = 40            # digits: what is longer is no identifier of a person

_email = r"[A-Za-z0-9_.+%'-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+[A-Za-z]{2,24}"
_iban = r"[A-Za-z]{2}[ -]?[0-9]{2}(?:[ -]{0,2}[A-Za-z0-9]){11,32}"
_run = r"\+?[(]?[0-9](?:[ ()./:_*\n\t\r-]{0,3}[0-9])+"
_candidate = re.compile(f"(?P<email>{_email})|(?P<iban>{_iban})|(?P<run>{_run})")
_a_run = re.compile(_run)
_group = re.compile(r"\d+")

# Issuers: (length range, first digits from, to). ISO/IEC 7812; brand ranges as the networks publish them.
ISSUERS = [((13, 13), "4", "4"), ((16, 16), "4", "4"), ((19, 19), "4", "4"), ((16, 16), "51", "55"), ((16, 16), "2221", "2720"), ((15, 15), "34", "34"), ((15, 15), "37", "37"),
           ((14, 19), "36", "36"), ((14, 19), "300", "305"), ((14, 19), "38", "39"), ((16, 19), "6011", "6011"), ((16, 19), "644", "649"), ((16, 19), "65", "65"),
           ((15, 19), "3528", "3589"), ((15, 15), "1800", "1800"), ((15, 15), "2131", "2131"), ((16, 19), "62", "62"), ((12, 19), "50", "50"), ((12, 19), "56", "58"), ((12, 19), "6304", "6304"), ((12, 19), "67", "67"),
           ((16, 16), "9792", "9792"), ((16, 19), "81", "81")]


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
    table = yaml.safe_load((Path(__file__).parent / "markets.yaml").read_text(encoding="utf-8"))
    own = {"taj": is_taj, "nino": lambda text: True, "samordningsnummer": is_samordningsnummer}
    return {code: Market(checks=(*(importlib.import_module(f"stdnum.{name}").is_valid for name in row.get("ids", [])), *(own[name] for name in row.get("own", []))),
                         digits=frozenset(row.get("digits", [])), shape=re.compile(rf"(?<![A-Za-z0-9])(?:{row['shape']})(?![A-Za-z0-9])", re.IGNORECASE) if "shape" in row else None,
                         bare_phone=row.get("bare_phone", False), cues=tuple(row["cues"])) for code, row in table["markets"].items()}


def is_taj(digits: str) -> bool:
    """Hungarian social security number (TAJ): weights 3 and 7 in turn, modulo 10."""
    return len(digits) == 9 and sum(int(d) * (7 if i % 2 else 3) for i, d in enumerate(digits[:8])) % 10 == int(digits[8])


def is_samordningsnummer(digits: str) -> bool:
    """Swedish coordination number: a personnummer whose day of birth is raised by 60 (Skatteverket SKV 704)."""
    short = digits[-10:]
    return len(digits) in (10, 12) and 61 <= int(short[4:6]) <= 91 and 1 <= int(short[2:4]) <= 12 and luhn.is_valid(short)


def is_card(digits: str) -> bool:
    """A number that some issuer could have given out, with a right check digit."""
    return luhn.is_valid(digits) and len(set(digits)) > 1 and any(
        low <= len(digits) <= high and first <= digits[: len(first)] <= last for (low, high), first, last in ISSUERS)


def iban_end(text: str, start: int, stop: int) -> int:
    """Where the IBAN that begins at `start` ends, cut at its country's own length, or 0 where there is none."""
    length = IBAN_LENGTHS.get(text[start:start + 2].upper())
    if length is None:
        return 0
    compact, position = "", start
    while position < stop and len(compact) < length:
        if text[position].isalnum():
            compact += text[position]
        position += 1
    return position if len(compact) == length and iban.is_valid(compact) else 0


# Length of an IBAN by country (ISO 13616 registry).
IBAN_LENGTHS = {"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18,
                "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23,
                "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31,
                "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SV": 28, "TN": 24,
                "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20}


@functools.cache
def announcing() -> dict[str, re.Pattern]:
    table = yaml.safe_load((Path(__file__).parent / "announce.yaml").read_text(encoding="utf-8"))
    return {kind: _any_of(words) for kind, words in table.items()}


@functools.cache
def _market_cue(code: str) -> re.Pattern:
    return _any_of(markets()[code].cues)


def _any_of(words: Iterable[str]) -> re.Pattern:
    forms = [re.escape(str(word)[:-1]) + r"\w*" if str(word).endswith("*") else re.escape(str(word)) for word in words]
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)", re.IGNORECASE)


def structured(seen: str, market: str | None) -> list[tuple[int, int, str]]:
    """(start, end, kind) of every identifier in a shadow's text, overlaps included.

    market: two-letter country of the conversation, or None: then only ids whose words announce them are looked for.
    """
    found = [(*match.span(), "email") for match in _said_mail().finditer(seen)] if _may_say_mail().search(seen) else []
    if "@" in seen or any(character.isdigit() for character in seen):
        searched = seen if seen.isascii() else "".join(c if c < "\x80" else "x" if c.isalpha() else " " for c in seen)
        found += _found(seen, searched, market)
    return found


def _found(seen: str, searched: str, market: str | None) -> Iterator[tuple[int, int, str]]:
    position = 0
    while match := _candidate.search(searched, position):
        start, end = match.span()
        position = end
        if match.lastgroup == "email":
            yield start, end, "email"
            continue
        if match.lastgroup == "iban":
            stop = iban_end(searched, start, len(searched)) if start == 0 or not searched[start - 1].isalnum() else 0
            if not stop and _announced("account", seen, start) and searched[start:start + 2].upper() in IBAN_LENGTHS and sum(c.isdigit() for c in match.group()) >= 10:
                stop = start + len(_until_word(match.group()))        # a mistyped one
            if stop:
                yield start, stop, "iban"
                position = stop
                continue
            run = _a_run.search(searched, start + 2)
            if run is None or run.start() >= end:
                continue
            start, end = run.span()
            position = max(end, start + 1)
        yield from _numbers(seen, searched, start, end, market)
    if market in markets() and (shape := markets()[market].shape):
        for match in shape.finditer(searched):
            bare = re.sub(r"[ .]", "", match.group())
            if any(check(bare) for check in markets()[market].checks) or _market_cue(market).search(seen, max(0, match.start() - NEAR), match.start()):
                yield match.start(), match.end(), "national_id"


def _until_word(text: str) -> str:
    """The part of a candidate before an ordinary word: a piece of three or more letters without a digit."""
    pieces = re.split(r"( )", text)
    kept = ""
    for place, piece in enumerate(pieces):
        if place > 1 and len(piece) >= 3 and piece.isalpha() and not piece.isupper():
            break
        kept += piece
    return kept.rstrip()


def _announced(kind: str, seen: str, start: int) -> bool:
    return announcing()[kind].search(seen, max(0, start - NEAR), start) is not None


def _numbers(seen: str, searched: str, start: int, end: int, market: str | None) -> Iterator[tuple[int, int, str]]:
    """Cards, ids and phones among groups of digits: at each group the longest that something recognises."""
    groups = [match.span() for match in _group.finditer(searched, start, end)]
    place = 0
    while place < len(groups):
        found = None
        for last in range(min(len(groups), place + 12) - 1, place - 1, -1):
            length = sum(b - a for a, b in groups[place:last + 1])
            if length < 6 or length > LONGEST or (groups[place][0] and searched[groups[place][0] - 1].isalpha()) or (groups[last][1] < len(searched) and searched[groups[last][1]].isalpha()):
                continue
            digits = "".join(searched[a:b] for a, b in groups[place:last + 1])
            kind = _kind(seen, searched, groups[place][0], groups[last][1], digits, market)
            if kind:
                found = last, kind
                break
        if found is None:
            place += 1
            continue
        last, kind = found
        begin, stop = groups[place][0], groups[last][1]
        while kind == "phone" and begin > start and searched[begin - 1] in "+(":
            begin -= 1
        yield begin, stop, kind
        place = last + 1


def _kind(seen: str, searched: str, start: int, end: int, digits: str, market: str | None) -> str | None:
    count = len(digits)
    if 12 <= count <= 19 and (is_card(digits) or (count >= 14 and _announced("card", seen, start) and not _announced("business", seen, start))):
        return "card"
    is_business = _announced("business", seen, start) or _date.match(searched, start) is not None or seen[max(0, start - 3):start] == "10."      # a DOI
    for code in [market] if market in markets() else []:
        country = markets()[code]
        is_cued = _market_cue(code).search(seen, max(0, start - NEAR), start) is not None
        if count in country.digits and (is_cued or (not is_business and any(check(digits) for check in country.checks))):
            return "national_id"
    if market not in markets():
        for code, country in markets().items():
            if count in country.digits and _market_cue(code).search(seen, max(0, start - NEAR), start):
                return "national_id"
    return "phone" if 7 <= count <= 15 and _is_phone(seen, searched, start, end, digits, market, is_business) else None


_date = re.compile(r"(?:19|20)\d{2}[-./](?:0?[1-9]|1[0-2])[-./](?:[0-2]?\d|3[01])(?!\d)|(?:[0-2]?\d|3[01])[-./](?:0?[1-9]|1[0-2])[-./](?:19|20)\d{2}(?!\d)")
_not_a_phone = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}(?: \d{1,2}[:.]\d{2})?|\d{1,3}(?:[.,' ]\d{3})*[.,]\d{1,2}|\d{1,2}:\d{2}.*|(?:\d{1,3}\.){3}\d{1,3}|\d+(?:\.\d+){2,}")


def _is_phone(seen: str, searched: str, start: int, end: int, digits: str, market: str | None, is_business: bool) -> bool:
    is_announced = _announced("phone", seen, start) and not is_business
    plus = searched[max(0, start - 2):start].strip("( ").endswith("+") or digits.startswith("00")
    written = searched[start:end]
    if is_announced and not _not_a_phone.fullmatch(written):
        return True
    if is_business or _not_a_phone.fullmatch(written) or "_" in written or "*" in written or ":" in written:
        return False
    if plus:
        return _is_phone_number("+" + digits.removeprefix("00"), None, phonenumbers.is_possible_number)
    if market is None:
        return False
    is_grouped = any(not c.isdigit() for c in written)
    country = markets().get(market)
    if not digits.startswith("0") and country is not None and not country.bare_phone:
        return False
    return (digits.startswith("0") or is_grouped or len(digits) >= 9) and _is_phone_number(digits, market, phonenumbers.is_valid_number)


def _is_phone_number(number: str, region: str | None, judge: Callable) -> bool:
    try:
        return judge(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False


@functools.cache
def _may_say_mail() -> re.Pattern:
    """Without one of these words no address is being spelled out."""
    words = yaml.safe_load((Path(__file__).parent / "announce.yaml").read_text(encoding="utf-8"))
    return re.compile("|".join(re.escape(word) for word in [" at ", "@", "(at)", "[at]", "{at}", *words["at"][1:]]), re.IGNORECASE)


@functools.cache
def _said_mail() -> re.Pattern:
    """An e-mail address as it is spoken or disguised: "anna dot berg at gmail dot com", "anna [at] post.se", "a n n a @ g m x . d e"."""
    words = yaml.safe_load((Path(__file__).parent / "announce.yaml").read_text(encoding="utf-8"))
    at = "|".join(re.escape(word) for word in words["at"])
    dot = "|".join(re.escape(word) for word in words["dot"])
    provider = "|".join(words["providers"])
    dotted = rf"(?: ?[(\[{{] ?(?:{dot}|\.) ?[)\]}}] ?| (?:{dot}) | ?\. ?)"
    local, part = r"[\w+-]{1,40}", r"[\w-]{1,40}"
    clear_at = rf"(?: ?[(\[{{<] ?(?:{at}|@|a) ?[)\]}}>] ?| ?@ ?| (?:{at.replace('at|', '', 1)}) )"
    return re.compile(
        rf"(?<!\w){local}(?:{dotted}{local}){{0,4}}{clear_at}{part}(?:{dotted}{part}){{1,4}}(?!\w)"
        rf"|(?<!\w){local}(?:{dotted}{local}){{0,4}} at {part}(?:(?: ?[(\[{{] ?(?:{dot}) ?[)\]}}] ?| (?:{dot}) ){part}){{1,4}}(?!\w)"
        rf"|(?<!\w){local}(?:{dotted}{local}){{0,4}}(?:{clear_at}| at )(?:{provider})(?:{dotted}{part}){{0,3}}(?!\w)"
        rf"|(?<!\w)(?:\w[ .]){{2,40}}?\w? ?@ ?(?:\w[ .]{{1,3}}){{3,40}}\w(?!\w)", re.IGNORECASE)
