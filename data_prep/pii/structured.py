"""Structured identifiers in one text: e-mail addresses, URLs, IBANs, cards, national ids of 23 markets, phones, IPs, secrets.

One linear-time scan (RE2 where it is installed, else `re` with the same pattern) proposes candidates, validators decide:
checksum and issuer for cards (ISO/IEC 7812), length by country and mod 97 for IBANs (ISO 13616), python-stdnum for
national ids, phonenumbers for phones. A number that its words announce ("my card is …") is taken even where the checksum
fails, for customers mistype; a business word in front ("order", "tracking") keeps a number out that has no checksum to
speak for it.
"""

from __future__ import annotations

import base64
import functools
import importlib
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import phonenumbers
import yaml
from stdnum import iban, luhn

try:
    import re2
except ImportError:         # no wheel for this platform: slower, with the same matches
    re2 = None

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NEAR = 40               # a word announces what follows within so many characters
TABLE = 64              # digits in one run: what is longer is a table or a dump, masked as one
NEIGHBOURS = {"US": ("US", "CA"), "CA": ("CA", "US"), "GB": ("GB", "GG", "JE", "IM")}      # who share a country code
LONGEST = 20            # digits of one identifier

_email = r"[A-Za-z0-9_.+%'-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+[A-Za-z]{2,24}"
_domains = ("com|org|net|edu|gov|info|biz|eu|io|co\\.uk|org\\.uk|ac\\.uk|gov\\.uk|de|fr|nl|se|dk|fi|pl|es|pt|cz|sk|ch|gr|ro|hu|ie|us|ca|ru|ua|bg|hr|lt|lv|ee|tr|shop|app|dev|online|store")
_url = rf"(?:https?://|www\.)[^\s<>\"'\\]+|[A-Za-z0-9-]{{1,63}}(?:\.[A-Za-z0-9-]{{1,63}}){{0,4}}\.(?:{_domains})(?:/[^\s<>\"'\\]*|\b)"
_iban = r"[A-Za-z]{2}[ .-]?[0-9OolI]{2}(?:[ .\n-]{0,2}[A-Za-z0-9]){11,32}"
_run = r"\+?[(]?[0-9](?:[ ()./:_*`\n\t\r-]{0,4}[0-9])+"
_ipv6 = r"[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){3,7}"
_token = r"(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{12,}|xox[abp]-[A-Za-z0-9-]{10,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]{8,}|[Bb]earer [A-Za-z0-9._-]{16,}"
CANDIDATE = f"(?P<email>{_email})|(?P<secret>{_token})|(?P<url>{_url})|(?P<iban>{_iban})|(?P<ipv6>{_ipv6})|(?P<run>{_run})"
_a_run = re.compile(_run)
_group = re.compile(r"\d+")


@functools.cache
def scan(linear: bool = True) -> Callable[[bytes, int], tuple[int, int, str] | None]:
    """A function (ASCII text, position) → (start, end, kind of candidate) or None; by RE2 if it is there and wanted."""
    if linear and re2 is not None:
        options = re2.Options()
        options.max_mem = 64 << 20
        pattern = re2.compile(CANDIDATE.encode(), options)
    else:
        pattern = re.compile(CANDIDATE.encode())

    def find(text: bytes, position: int) -> tuple[int, int, str] | None:
        match = pattern.search(text, position)
        return match and (*match.span(), match.lastgroup if isinstance(match.lastgroup, str) else match.lastgroup.decode())
    return find


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
    table = yaml.load((Path(__file__).parent / "markets.yaml").read_text(encoding="utf-8"), LOADER)
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
    meant = compact[:2] + compact[2:].translate(_LOOK_LIKE_DIGITS)
    return position if len(compact) == length and (iban.is_valid(compact) or iban.is_valid(compact[:2] + meant[2:4] + compact[4:]) or iban.is_valid(meant)) else 0


_LOOK_LIKE_DIGITS = str.maketrans("OolI", "0011")


# Length of an IBAN by country (ISO 13616 registry).
IBAN_LENGTHS = {"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18,
                "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23,
                "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31,
                "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SV": 28, "TN": 24,
                "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20}


@functools.cache
def announcing() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """(word → kind, beginning of a word → kind, phrase of several words → kind): what announces which kind of number."""
    table = yaml.load((Path(__file__).parent / "announce.yaml").read_text(encoding="utf-8"), LOADER)
    rows = [(kind, str(word).casefold()) for kind in ANNOUNCED for word in table[kind]]
    rows += [(f"id {code}", str(word).casefold()) for code, market in markets().items() for word in market.cues]
    words = {word: kind for kind, word in rows if not word.endswith("*") and " " not in word}
    begins = {word[:-1]: kind for kind, word in rows if word.endswith("*")}
    phrases = {word: kind for kind, word in rows if " " in word}
    return words, begins, phrases


ANNOUNCED = ("business", "card", "account", "phone", "mail", "document", "secret", "device", "address_of_network", "version", "amount")


@functools.cache
def words_for(kind: str) -> frozenset[str]:
    """The words of announce.yaml that ask for a name, an address or a number without saying of what."""
    table = yaml.load((Path(__file__).parent / "announce.yaml").read_text(encoding="utf-8"), LOADER)
    return frozenset(str(word).casefold() for word in table[kind])


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


_cue_word = re.compile(r"[^\W_]+(?:[-'][^\W\d_]+)*")


def announced(seen: str, start: int) -> list[str]:
    """The kinds of number that the words right before `start` announce, the nearest first."""
    before = seen[max(0, start - NEAR):start].casefold()
    if start > NEAR and seen[start - NEAR - 1].isalnum():       # begins inside a word
        before = " " * (len(before) - len(before.lstrip("abcdefghijklmnopqrstuvwxyz"))) + before.lstrip("abcdefghijklmnopqrstuvwxyz")
    found = []
    for match in _cue_word.finditer(before):
        kind = kind_of_word(match.group())
        for part in match.group().split("-") if kind is None and "-" in match.group() else ():
            kind = kind or kind_of_word(part)
        if kind:
            found.append((match.start(), kind))
    found += [(match.start(), announcing()[2][match.group()]) for match in _phrases().finditer(before)]
    return [kind for _, kind in sorted(found, reverse=True)]


def structured(seen: str, market: str | None, linear: bool = True) -> list[tuple[int, int, str]]:
    """(start, end, kind) of every identifier in a shadow's text, overlaps included.

    market: two-letter country of the conversation, or None: then only ids whose words announce them are looked for.
    """
    found = [(*match.span(), "email") for match in _said_mail().finditer(seen)] if _may_say_mail().search(seen) else []
    found += [(*match.span(), "email") for match in _bare_provider().finditer(seen) if "mail" in announced(seen, match.start())]
    if _worth_a_scan.search(seen):
        searched = seen if seen.isascii() else seen.translate(_to_ascii)
        found += _found(seen, searched, market, scan(linear))
    return found


class _ToAscii(dict):
    """For str.translate: other letters become x, anything else a blank, so that offsets stay."""

    def __missing__(self, code: int) -> int:
        self[code] = code if code < 128 else ord("x") if chr(code).isalpha() else ord(" ")
        return self[code]


_to_ascii = _ToAscii()
_worth_a_scan = re.compile(r"[@\d]|\w\.\w|://|_|[Bb]earer")


def _found(seen: str, searched: str, market: str | None, find: Callable) -> Iterator[tuple[int, int, str]]:
    position, raw = 0, searched.encode()
    while match := find(raw, position):
        start, end, kind = match
        position = end
        if kind == "email":
            yield start, end, "email"
        elif kind == "secret":
            yield start, end, "secret"
        elif kind == "url":
            host = _made_up_host.match(searched[start:end])
            if host:
                position = start + host.end()          # what follows may still tell somebody's mail
                yield from ((start + token.start(), start + token.end(), "secret") for token in _long_token.finditer(searched[start:end]))
            else:
                yield start, start + len(searched[start:end].rstrip(".,;:!?)]}")), "url"
        elif kind == "ipv6":
            if _is_ipv6(searched[start:end]):
                yield start, end, "ip"
            else:
                position = yield from _numbers_within(seen, searched, start, end, market)
        elif kind == "iban" and (stop := _iban_stop(seen, searched, start, end)):
            yield start, stop, "iban"
            position = stop
        elif kind == "iban":
            position = start + 2            # digits in it may be another thing
        else:
            yield from _numbers(seen, searched, start, end, market)
    if market in markets() and (shape := markets()[market].shape):
        for match in shape.finditer(searched):
            bare = re.sub(r"[ .]", "", match.group())
            if any(check(bare) for check in markets()[market].checks) or f"id {market}" in announced(seen, match.start()):
                yield match.start(), match.end(), "national_id"
    for match in _mac.finditer(searched):
        if announced(seen, match.start())[:1] not in (["business"], ["version"]):
            yield *match.span(), "document"
    for match in _base64.finditer(searched):
        if _holds_mail(match.group()):
            yield *match.span(), "secret"
    for match in _mixed.finditer(searched):          # passport, licence, password, PIN: letters and digits that a word announces
        kinds = announced(seen, match.start())[:1]
        if kinds in (["document"], ["secret"], ["device"]) and any(c.isdigit() for c in match.group()):
            yield match.start(), match.end(), "secret" if kinds == ["secret"] else "document"


_mac = re.compile(r"(?<![\w:-])(?:[0-9A-Fa-f]{2}([:-]))(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![\w:-])")
_base64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,400}={0,2}")


def _holds_mail(text: str) -> bool:
    try:
        said = base64.b64decode(text.rstrip("=").replace("-", "+").replace("_", "/") + "=" * (-len(text.rstrip("=")) % 4))
    except ValueError:
        return False
    return re.search(rb"[\w.+-]+@[\w-]+\.\w", said) is not None


_mixed = re.compile(r"(?<![A-Za-z0-9])(?=[A-Za-z0-9!#$%&*+/?@_-]{0,127}[0-9])[A-Za-z0-9_][A-Za-z0-9!#$%&*+/?@_-]{2,127}")


# Names that never resolve (RFC 2606, RFC 6761): nobody's page.
_made_up_host = re.compile(r"(?:https?://)?(?:[\w-]{1,63}\.){0,4}(?:example(?:\.(?:com|org|net))?|test|invalid|localhost)(?:[/:?]|$)", re.IGNORECASE)


_long_token = re.compile(r"(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{20,}")


def _numbers_within(seen: str, searched: str, start: int, end: int, market: str | None) -> Iterator[tuple[int, int, str]]:
    """What stands in the digits inside a failed candidate. Returns where to go on."""
    run = _a_run.search(searched, start)
    if run is None or run.start() >= end:
        return max(end, start + 1)
    yield from _numbers(seen, searched, *run.span(), market)
    return max(run.end(), start + 1)


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _iban_stop(seen: str, searched: str, start: int, end: int) -> int:
    """Where the IBAN that begins at `start` ends, a mistyped one that is announced included; 0 where there is none."""
    stop = iban_end(searched, start, len(searched))
    if stop or (start and searched[start - 1].isalnum()) or searched[start:start + 2].upper() not in IBAN_LENGTHS:
        return stop
    kept = _until_word(searched[start:end])
    compact = re.sub("[^A-Za-z0-9]", "", kept)
    is_near_length = abs(len(compact) - IBAN_LENGTHS[searched[start:start + 2].upper()]) <= 1
    if sum(c.isdigit() for c in kept) >= 10 and (is_near_length or "account" in announced(seen, start)):
        return start + len(kept)
    return 0


def _until_word(text: str) -> str:
    """The part of a candidate before an ordinary word: a piece of three or more letters without a digit."""
    pieces = re.split(r"( )", text)
    kept = ""
    for place, piece in enumerate(pieces):
        if place > 1 and len(piece) >= 3 and piece.isalpha() and not piece.isupper():
            break
        kept += piece
    return kept.rstrip()


def _numbers(seen: str, searched: str, start: int, end: int, market: str | None) -> Iterator[tuple[int, int, str]]:
    """Cards, ids and phones among groups of digits: at each group the longest that something recognises."""
    groups = [match.span() for match in _group.finditer(searched, start, end)]
    total = sum(b - a for a, b in groups)
    if total > TABLE:
        yield start, end, "number"
        return
    if len(groups) >= 6 and all(b - a == 1 for a, b in groups):          # "4 1 1 1 …": digits told one by one
        digits = "".join(searched[a:b] for a, b in groups)
        kind = _kind(seen, searched, groups[0][0], end, digits, market) if total <= LONGEST else None
        if kind or total >= 7:
            yield start, end, kind or "number"
        return
    place = 0
    while place < len(groups):
        found = None
        digits_here = [searched[a:b] for a, b in groups[place:place + 12]]
        for last in range(len(digits_here) - 1, -1, -1):
            digits = "".join(digits_here[:last + 1])
            begin, stop = groups[place][0], groups[place + last][1]
            if not 3 <= len(digits) <= LONGEST or (begin and searched[begin - 1].isalpha() and not _is_label(searched, begin)) or (stop < len(searched) and searched[stop].isalpha() and len(digits) < 12):
                continue
            kind = _kind(seen, searched, begin, stop, digits, market)
            if kind:
                found = last, kind
                break
        if found is None:
            place += 1
            continue
        last, kind = found
        begin, stop = groups[place][0], groups[place + last][1]
        while kind == "phone" and begin > start and searched[begin - 1] in "+(":
            begin -= 1
        if kind != "business":
            yield begin, stop, kind
        place += last + 1


def _is_label(searched: str, begin: int) -> bool:
    """Whether the letters that touch a number are a word that announces it: "card4111…"."""
    word = re.search(r"[A-Za-z]+$", searched[max(0, begin - 20):begin])
    return word is not None and kind_of_word(word.group().casefold()) is not None


def _kind(seen: str, searched: str, start: int, end: int, digits: str, market: str | None) -> str | None:
    """What a number is: a kind of personal data, "business" where it is declared one as a whole, or None."""
    count, written = len(digits), searched[start:end]
    if 14 <= count <= 19 and is_card(digits):
        return "card"
    if count < 6 and not (count >= 3 and start and written == digits):
        return None
    cues = announced(seen, start)
    nearest = cues[0] if cues else None
    octets = [int(part) for part in written.split(".")] if _ipv4.fullmatch(written) else [999]
    if max(octets) < 256 and not (nearest == "phone" and count >= 8):
        is_address = nearest != "version" and (nearest == "address_of_network" or sum(octet > 15 for octet in octets) >= 2)
        return "ip" if is_address else "business"
    if nearest == "card" and 4 <= count <= 11 and not _not_a_phone.fullmatch(written) and not _unit.match(seen, end):
        return "card"                           # a part of one: "ending in 1234", "the first half is 4111 1111"
    if nearest == "secret" and written == digits and 3 <= count <= 8:
        return "secret"
    if count < 6:
        return None
    if count in (12, 13) and nearest != "business" and is_card(digits):
        return "card"
    if count == 15 and luhn.is_valid(digits) and nearest != "business":          # IMEI (3GPP TS 23.003)
        return "document"
    if nearest in ("document", "device") and count <= 17:
        return "document"
    is_business = nearest in ("business", "version", "amount") or _date.match(searched, start) is not None or seen[max(0, start - 3):start] == "10." or _unit.match(seen, end) is not None
    if 12 <= count <= 19 and "card" in cues and not is_business:
        return "card"
    codes = [market] if market in markets() else []
    codes += [cue[3:] for cue in cues if cue.startswith("id ") and cue[3:] != market]
    for code in codes:
        country = markets()[code]
        is_cued = f"id {code}" in cues[:2]
        if count in country.digits and not _unlike_an_id.search(written) and (is_cued or (not is_business and code == market and any(check(digits) for check in country.checks))):
            return "national_id"
        if is_cued and country.digits and min(abs(count - n) for n in country.digits) <= 1 and written == digits:
            return "national_id"            # one digit too many or too few
    if nearest == "account" and 6 <= count <= 20 and not _not_a_phone.fullmatch(written):
        return "account"
    return "phone" if 7 <= count <= 15 and _is_phone(searched, start, end, digits, market, nearest, is_business) else None


_unlike_an_id = re.compile(r"[:_*]|\d[()]")
_ipv4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_unit = re.compile(r" ?(?:[€$£%°]|(?:kr|sek|nok|dkk|eur|euro|usd|gbp|pln|zł|kč|ft|lei|pcs|st|stk|x|mm|cm|m|km|kg|g|gb|mb|kb|mhz|ghz|ms|ml|l|w|mah|px|rpm)\b)", re.IGNORECASE)
_date = re.compile(r"(?:19|20)\d{2}[-./](?:0?[1-9]|1[0-2])[-./](?:[0-2]?\d|3[01])(?!\d)|(?:[0-2]?\d|3[01])[-./](?:0?[1-9]|1[0-2])[-./](?:19|20)\d{2}(?!\d)")
_not_a_phone = re.compile(r"(?:[0-2]?\d|3[01])[./-](?:0?[1-9]|1[0-2])[./-](?:\d{2}|(?:19|20)\d{2})(?: \d{1,2}[:.]\d{2})?|(?:19|20)\d{2}[./-](?:0?[1-9]|1[0-2])[./-](?:[0-2]?\d|3[01])(?: \d{1,2}[:.]\d{2})?"
                          r"|\d{1,3}(?:[.,' ]\d{3})*[.,]\d{1,2}|\d{1,2}:\d{2}.*|(?:\d{1,3}\.){3}\d{1,3}|\d+(?:\.\d)+(?:\.\d+)*|\d{1,3}(?:\.\d{1,3}){2}")


def _is_phone(searched: str, start: int, end: int, digits: str, market: str | None, nearest: str | None, is_business: bool) -> bool:
    plus = searched[max(0, start - 2):start].strip("( ").endswith("+") or digits.startswith("00")
    written = searched[start:end]
    dotted = "." in written and (digits.startswith("0") or (market in markets() and markets()[market].bare_phone)) and count_of_groups(written) >= 3 and 9 <= len(digits) <= 11
    if nearest == "phone" and (len(digits) >= 8 or not _not_a_phone.fullmatch(written)) and not (_date.fullmatch(written)):
        return True
    if plus and "(0)" in written:          # +36 (0)20 668 8507
        digits = re.sub(r"\D", "", written.replace("(0)", ""))
    if plus and not _no_phones_sign.search(written):
        return _is_phone_number("+" + digits.removeprefix("00"), None, phonenumbers.is_possible_number)
    if is_business or market is None or (_not_a_phone.fullmatch(written) and not dotted) or _no_phones_sign.search(written):
        return False
    is_grouped = written != digits
    country = markets().get(market)
    if not digits.startswith("0") and country is not None and not country.bare_phone:
        return False
    return (digits.startswith("0") or is_grouped or len(digits) >= 9) and _is_phone_number(digits, market, lambda number: any(
        phonenumbers.is_valid_number_for_region(number, region) for region in NEIGHBOURS.get(market, (market,))))


_no_phones_sign = re.compile(r"(?<!\*)\*(?!\*)|:|__")


def count_of_groups(written: str) -> int:
    return len(_group.findall(written))


def _is_phone_number(number: str, region: str | None, judge: Callable) -> bool:
    try:
        return judge(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False


@functools.cache
def _may_say_mail() -> re.Pattern:
    """Without one of these words no address is being spelled out."""
    words = yaml.load((Path(__file__).parent / "announce.yaml").read_text(encoding="utf-8"), LOADER)
    return re.compile("|".join(re.escape(word) for word in [" at ", "@", "(at)", "[at]", "{at}", "<at>", "_at_", "(a)", "[a]", " chez ", " bei ", " bij ", *words["at"][1:]]), re.IGNORECASE)


@functools.cache
def _said_mail() -> re.Pattern:
    """An e-mail address as it is spoken or disguised: "anna dot berg at gmail dot com", "anna [at] post.se", "a n n a @ g m x . d e"."""
    words = yaml.load((Path(__file__).parent / "announce.yaml").read_text(encoding="utf-8"), LOADER)
    at = "|".join(re.escape(word) for word in words["at"])
    dot = "|".join(re.escape(word) for word in words["dot"])
    provider = "|".join(words["providers"])
    dotted = rf"(?: ?[(\[{{] ?(?:{dot}|\.) ?[)\]}}] ?| (?:{dot}) | ?\. ?)"
    local, part = r"[\w+'-]{1,40}", r"[\w-]{1,40}"
    bracketed = rf" ?[(\[{{<] ?(?:{at}|@|a) ?[)\]}}>] ?|_at_"
    clear_at = rf"(?:{bracketed}| ?@ ?| (?:{at.replace('at|', '', 1)}) )"
    letters = r"(?:\w(?: ?[-._] ?| )){3,60}\w"
    return re.compile(
        rf"(?<!\w){local}(?:{dotted}{local}){{0,4}}{clear_at}{part}(?:{dotted}{part}){{1,4}}(?!\w)"
        rf"|(?<!\w){local}(?:{dotted}{local}){{0,4}} (?:at|chez|bei|bij) {part}(?:(?: ?[(\[{{] ?(?:{dot}) ?[)\]}}] ?| (?:{dot}) ){part}){{1,4}}(?!\w)"
        rf"|(?<!\w){local}(?:{dotted}{local}){{0,4}}(?:{clear_at}| at )(?:{provider})(?:{dotted}{part}|[ ,.](?:com|net|org|de|fr|se|nl|pl|es|it|co\.uk)){{0,3}}(?!\w)"
        rf"|(?<!\w){letters} ?(?:@|{at}|{bracketed}) ?(?:{letters}|{part}(?:{dotted}{part}){{1,3}})(?!\w)", re.IGNORECASE)


@functools.cache
def _bare_provider() -> re.Pattern:
    """"anna.berg gmail": a name that cannot be a word, and a provider's, where a mail address is asked for or announced."""
    words = yaml.load((Path(__file__).parent / "announce.yaml").read_text(encoding="utf-8"), LOADER)
    return re.compile(rf"(?<![\w.+-])(?=[\w+-]{{0,40}}[._+\d])[\w.+-]{{2,64}} (?:{'|'.join(words['providers'])})(?!\w)", re.IGNORECASE)
