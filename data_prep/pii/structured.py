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
import ipaddress
import re
from collections.abc import Callable, Iterator

from stdnum import iban
from stdnum.iso7064 import mod_97_10

from data_prep.pii.announce import announced, markets
from data_prep.pii.mail import bare_providers, said_mails
from data_prep.pii.numbers import is_amount, numbers

try:
    import re2
except ImportError:         # no wheel for this platform: slower, with the same matches
    re2 = None


_email = r"[A-Za-z0-9_.+%'-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+[A-Za-z]{2,24}"
_domains = ("com|org|net|edu|gov|info|biz|eu|io|co\\.uk|org\\.uk|ac\\.uk|gov\\.uk|de|fr|nl|se|dk|fi|pl|es|pt|cz|sk|ch|gr|ro|hu|ie|us|ca|ru|ua|bg|hr|lt|lv|ee|tr|shop|app|dev|online|store")
_url = rf"(?:https?://|www\.)[^\s<>\"'\\]+|[A-Za-z0-9-]{{1,63}}(?:\.[A-Za-z0-9-]{{1,63}}){{0,4}}\.(?:{_domains})(?:/[^\s<>\"'\\]*|\b)"
_iban = r"[A-Za-z]{2}[ .-]?[0-9OolI]{2}(?:[ .\n-]{0,2}[A-Za-z0-9]){11,32}"
_run = r"\+?[(]?[0-9](?:[ ()./:_*`\n\t\r-]{0,4}[0-9])+"
_ipv6 = r"[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){3,7}"
_token = r"(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{12,}|xox[abp]-[A-Za-z0-9-]{10,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]{8,}|[Bb]earer [A-Za-z0-9._-]{16,}"
CANDIDATE = f"(?P<email>{_email})|(?P<secret>{_token})|(?P<url>{_url})|(?P<iban>{_iban})|(?P<ipv6>{_ipv6})|(?P<run>{_run})"
_a_run = re.compile(_run)
_candidate = re.compile(CANDIDATE.encode())


@functools.cache
def scan(linear: bool = True) -> Callable[[bytes, int], tuple[int, int, str] | None]:
    """A function (ASCII text, position) → (start, end, kind of candidate) or None; by RE2 if it is there and wanted."""
    if linear and re2 is not None:
        options = re2.Options()
        options.max_mem = 64 << 20
        options.never_capture = True
        pattern = re2.compile(CANDIDATE.encode(), options)
    else:
        pattern = _candidate

    def find(text: bytes, position: int) -> tuple[int, int, str] | None:
        match = pattern.search(text, position)
        if match is not None and match.re is not _candidate:          # where it begins is RE2's to find; which alternative it is costs less here
            match = _candidate.match(text, match.start())
        return match and (*match.span(), match.lastgroup)
    return find


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
    # O for 0 only among digits: "gillar inte halsduken och v" would be one of Gibraltar's
    forms = dict.fromkeys((compact, compact[:2] + meant[2:4] + compact[4:], meant)) if sum(c.isdigit() for c in compact) >= 8 else (compact,)
    return position if len(compact) == length and any(_is_iban(form, text[start:start + 4]) for form in forms) else 0


def _is_iban(compact: str, written: str) -> bool:
    """By its check digits; where a word may stand for the country ("is 64 5759 …") by the bank's number too, which costs ten times as much."""
    return compact[2:4].isdigit() and mod_97_10.is_valid(compact[4:] + compact[:4]) and ((written[:2].isupper() and written[2:].isdigit()) or iban.is_valid(compact))


_LOOK_LIKE_DIGITS = str.maketrans("OolI", "0011")


# Length of an IBAN by country (ISO 13616 registry).
IBAN_LENGTHS = {"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18,
                "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23,
                "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31,
                "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SV": 28, "TN": 24,
                "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20}


def structured(seen: str, market: str | None, linear: bool = True) -> list[tuple[int, int, str]]:
    """(start, end, kind) of every identifier in a shadow's text, overlaps included.

    market: two-letter country of the conversation, or None: then only ids whose words announce them are looked for.
    """
    found = [(*place, "email") for place in said_mails(seen)]
    found += [(*place, "email") for place in bare_providers(seen) if "mail" in announced(seen, place[0])]
    if _may_identify.search(seen):
        searched = seen if seen.isascii() else seen.translate(_to_ascii)
        found += _found(seen, searched, market, scan(linear))
    return found


class _ToAscii(dict):
    """For str.translate: other letters become x, anything else a blank, so that offsets stay."""

    def __missing__(self, code: int) -> int:
        self[code] = code if code < 128 else ord("x") if chr(code).isalpha() else ord(" ")
        return self[code]


_to_ascii = _ToAscii()
_may_identify = re.compile(r"[\d@_]|::|://|\w\.\w|[Bb]earer|eyJ|AKIA|xox")
_worth_a_scan = re.compile(r"[@_]|::|://|\w\.\w|\d[^A-Za-z]{0,4}\d|[Bb]earer|eyJ|AKIA|xox")


def _found(seen: str, searched: str, market: str | None, find: Callable) -> Iterator[tuple[int, int, str]]:
    position, raw = 0, searched.encode()
    while _worth_a_scan.search(searched, position) and (match := find(raw, position)):
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
            yield from numbers(seen, searched, start, end, market)
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
        kinds = announced(seen, match.start())[:2]          # "my passport number is": two kinds, and the second says it
        if kinds[:1] == ["secret"]:
            yield *match.span(), "secret"
        elif {"document", "device"} & set(kinds[:1] if kinds[:1] != ["phone"] else kinds) and not is_amount(seen, *match.span()):
            yield *match.span(), "document"


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


_two_digits = re.compile(r"\W?\d\W?\d")
_long_token = re.compile(r"(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{20,}")


def _numbers_within(seen: str, searched: str, start: int, end: int, market: str | None) -> Iterator[tuple[int, int, str]]:
    """What stands in the digits inside a failed candidate. Returns where to go on."""
    run = _a_run.search(searched, start)
    if run is None or run.start() >= end:
        return max(end, start + 1)
    yield from numbers(seen, searched, *run.span(), market)
    return max(run.end(), start + 1)


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _iban_stop(seen: str, searched: str, start: int, end: int) -> int:
    """Where the IBAN that begins at `start` ends, a mistyped one that is announced included; 0 where there is none."""
    stop = iban_end(searched, start, len(searched))
    if stop or (start and searched[start - 1].isalnum()) or not _two_digits.match(searched, start + 2) or searched[start:start + 2].upper() not in IBAN_LENGTHS:
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


