"""Groups of digits: which of them are a card, an id, a phone, an account – and which an order, an amount, a version."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import phonenumbers
from stdnum import luhn

from data_prep.pii.announce import announced, kind_of_word, markets

TABLE = 64              # digits in one run: what is longer is a table or a dump, masked as one
LONGEST = 20            # digits of one identifier
NEIGHBOURS = {"US": ("US", "CA"), "CA": ("CA", "US"), "GB": ("GB", "GG", "JE", "IM")}      # who share a country code
_group = re.compile(r"\d+")
# Issuers: (length range, first digits from, to). ISO/IEC 7812; brand ranges as the networks publish them.
ISSUERS = [((13, 13), "4", "4"), ((16, 16), "4", "4"), ((19, 19), "4", "4"), ((16, 16), "51", "55"), ((16, 16), "2221", "2720"), ((15, 15), "34", "34"), ((15, 15), "37", "37"),
           ((14, 19), "36", "36"), ((14, 19), "300", "305"), ((14, 19), "38", "39"), ((16, 19), "6011", "6011"), ((16, 19), "644", "649"), ((16, 19), "65", "65"),
           ((15, 19), "3528", "3589"), ((15, 15), "1800", "1800"), ((15, 15), "2131", "2131"), ((16, 19), "62", "62"), ((12, 19), "50", "50"), ((12, 19), "56", "58"), ((12, 19), "6304", "6304"), ((12, 19), "67", "67"),
           ((16, 16), "9792", "9792"), ((16, 19), "81", "81")]


def is_card(digits: str) -> bool:
    """A number that some issuer could have given out, with a right check digit."""
    return luhn.is_valid(digits) and len(set(digits)) > 1 and any(
        low <= len(digits) <= high and first <= digits[: len(first)] <= last for (low, high), first, last in ISSUERS)


def numbers(seen: str, searched: str, start: int, end: int, market: str | None) -> Iterator[tuple[int, int, str]]:
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
            if not 3 <= len(digits) <= LONGEST:
                continue
            if begin and searched[begin - 1].isalpha():          # "card4111…", "no4111…thanks", but not "AB4111…" and "sku4111"
                if not _is_label(searched, begin) and not (searched[begin - 1].islower() and len(digits) == 16 and is_card(digits)):
                    continue
            elif stop < len(searched) and searched[stop].isalpha() and len(digits) < 12 and not _extension.match(searched, stop):
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
        if kind == "phone" and (extension := _extension.match(searched, stop)):
            stop = extension.end()
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
    if count == 16 and _fours.fullmatch(written) and announced(seen, start)[:1] != ["business"]:          # written as cards are, one digit wrong
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
    if count < 6 and not (count == 4 and cues[:1] and cues[0].startswith("id ")):
        return None
    if start and searched[start - 1] == "+" and 8 <= count <= 15 and not _no_phones_sign.search(written) and _is_phone_number("+" + digits, None, phonenumbers.is_possible_number):
        return "phone"
    if count in (12, 13) and nearest != "business" and is_card(digits):
        return "card"
    if count == 15 and luhn.is_valid(digits) and nearest != "business":          # IMEI (3GPP TS 23.003)
        return "document"
    if nearest in ("document", "device") and count <= 17 and not is_amount(seen, start, end):
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
        if is_cued and count == 4 and written == digits:          # the last four
            return "national_id"
        if is_cued and country.digits and min(abs(count - n) for n in country.digits) <= 1 and written == digits:
            return "national_id"            # one digit too many or too few
    if nearest == "account" and 6 <= count <= 20 and not _not_a_phone.fullmatch(written):
        return "account"
    return "phone" if 7 <= count <= 15 and _is_phone(searched, start, end, digits, market, nearest, is_business) else None


def is_amount(seen: str, start: int, end: int) -> bool:
    """Whether a number is money or a measure: by its sign or unit, or by two decimals."""
    while start and seen[start - 1] in ".," and seen[max(0, start - 2)].isdigit():          # the whole of "8,548.89"
        start = max(0, start - 2)
        while start and seen[start - 1].isdigit():
            start -= 1
    while (rest := _decimals.match(seen, end)) is not None:
        end = rest.end()
    return _unit.match(seen, end) is not None or re.search(r"[€$£] ?$|\b(?:kr|sek|nok|dkk|eur|chf|usd|gbp|pln) ?$", seen[max(0, start - 5):start], re.IGNORECASE) is not None or re.fullmatch(r"[\d., ]*[.,]\d\d", seen[start:end]) is not None


_decimals = re.compile(r"[.,]\d+")
_unlike_an_id = re.compile(r"[:_*]|\d[()]")
_ipv4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_unit = re.compile(r",-| ?(?:[€$£%°]|(?:kr|sek|nok|dkk|eur|euro|usd|gbp|pln|zł|kč|ft|lei|pcs|st|stk|x|mm|cm|m|km|kg|g|gb|mb|kb|mhz|ghz|ms|ml|l|w|mah|px|rpm)\b)", re.IGNORECASE)
_date = re.compile(r"(?:19|20)\d{2}[-./](?:0?[1-9]|1[0-2])[-./](?:[0-2]?\d|3[01])(?!\d)|(?:[0-2]?\d|3[01])[-./](?:0?[1-9]|1[0-2])[-./](?:19|20)\d{2}(?!\d)")
_not_a_phone = re.compile(r"(?:[0-2]?\d|3[01])[./-](?:0?[1-9]|1[0-2])[./-](?:\d{2}|(?:19|20)\d{2})(?: \d{1,2}[:.]\d{2})?|(?:19|20)\d{2}[./-](?:0?[1-9]|1[0-2])[./-](?:[0-2]?\d|3[01])(?: \d{1,2}[:.]\d{2})?"
                          r"|\d{1,3}(?:[.,' ]\d{3})*[.,]\d{1,2}|\d{1,2}:\d{2}.*|(?:\d{1,3}\.){3}\d{1,3}|\d+(?:\.\d)+(?:\.\d+)*|\d{1,3}(?:\.\d{1,3}){2}")


def _is_phone(searched: str, start: int, end: int, digits: str, market: str | None, nearest: str | None, is_business: bool) -> bool:
    plus = searched[max(0, start - 2):start].strip("( ").endswith("+") or digits.startswith("00")
    written = searched[start:end]
    dotted = "." in written and (digits.startswith("0") or (market in markets() and markets()[market].bare_phone)) and len(_group.findall(written)) >= 3 and 9 <= len(digits) <= 11
    if nearest == "phone" and (len(digits) >= 8 or not _not_a_phone.fullmatch(written)) and not (_date.fullmatch(written)):
        return True
    if plus and "(0)" in written:          # +36 (0)20 668 8507
        digits = re.sub(r"\D", "", written.replace("(0)", ""))
    if plus and not _no_phones_sign.search(written):
        return _is_phone_number("+" + digits.removeprefix("00"), None, phonenumbers.is_possible_number)
    if is_business or market is None or (_not_a_phone.fullmatch(written) and not dotted) or _no_phones_sign.search(written):
        return False
    is_grouped = written != digits
    if market in ("US", "CA") and _nanp.fullmatch(digits):          # an area code that nobody has yet, or a slip
        return True
    if _phone_groups.fullmatch(written) and 8 <= len(digits) <= 12 and (          # somebody's from another country, or a mistyped one
            digits.startswith("0") or any(_is_phone_number(digits, region, phonenumbers.is_valid_number) for region in markets())):
        return True
    country = markets().get(market)
    if not digits.startswith("0") and country is not None and not country.bare_phone:
        return False
    return (digits.startswith("0") or is_grouped or len(digits) >= 9) and _is_phone_number(digits, market, lambda number: any(
        phonenumbers.is_valid_number_for_region(number, region) for region in NEIGHBOURS.get(market, (market,))))


_nanp = re.compile(r"1?[2-9]\d\d[2-9]\d{6}")          # North American Numbering Plan: NXX NXX XXXX
_phone_groups = re.compile(r"(?!(?:(?:19|20)\d\d[ -]?)+$)[(]?\d{2,5}[)]?(?:[ -]\d{2,4}){2,4}")
_fours = re.compile(r"\d{4}(?:[ -]\d{4}){3}")
_extension = re.compile(r" ?(?:x|ext\.?) ?\d{1,5}(?!\w)")
_no_phones_sign = re.compile(r"(?<!\*)\*(?!\*)|:|__")


def _is_phone_number(number: str, region: str | None, judge: Callable) -> bool:
    try:
        return judge(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False
