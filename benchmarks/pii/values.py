"""Valid identifiers drawn at random, and the ways people write them. Ranges reserved for fiction are avoided: those are what a mask may put in."""

from __future__ import annotations

import random
import re
from functools import cache

import phonenumbers
from phonenumbers import PhoneNumberFormat, PhoneNumberType
from stdnum import iban as stdnum_iban
from stdnum import luhn

from benchmarks.pii.text import load

IBAN_LENGTHS = {"AL": 28, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20, "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27,
                "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27, "LT": 20, "LV": 21, "MK": 19, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24,
                "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "TR": 26, "UA": 29}
RESERVED_PHONES = re.compile(r"^\+(1\d{3}55501|447700900|442079460|46701740|493023125|3319900|3363998)")
_RUNS = re.compile(r"(\d+)!([nac])")


def digits(rng: random.Random, n: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(n))


def letters(rng: random.Random, n: int, alphabet: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ") -> str:
    return "".join(rng.choice(alphabet) for _ in range(n))


def shape(pattern: str, compact: str) -> str:
    """`compact` written into the `#` of the pattern."""
    characters = iter(compact)
    return "".join(next(characters) if c == "#" else c for c in pattern)


def chunks(text: str, *sizes: int) -> list[str]:
    """Cut into pieces of these sizes; the last size repeats."""
    pieces, at, i = [], 0, 0
    while at < len(text):
        size = sizes[min(i, len(sizes) - 1)]
        pieces.append(text[at:at + size])
        at, i = at + size, i + 1
    return pieces


@cache
def _prefixes(brand: str) -> list[str]:
    """Every prefix of the brand, ranges counted out."""
    out = []
    for entry in map(str, load("values")["brands"][brand]["prefixes"]):
        low, _, high = entry.partition("-")
        out += [str(n) for n in range(int(low), int(high or low) + 1)]
    return out


def card(rng: random.Random, brand: str | None = None, length: int | None = None) -> str:
    """A card number with a right Luhn digit."""
    brand = brand or rng.choice(list(load("values")["brands"]))
    prefix = rng.choice(_prefixes(brand))
    body = prefix + digits(rng, (length or rng.choice(load("values")["brands"][brand]["lengths"])) - len(prefix) - 1)
    return body + luhn.calc_check_digit(body)


def card_groups(number: str) -> list[str]:
    """In the groups that are printed on the card: Amex and Diners 4-6-rest, all others fours."""
    return chunks(number, *((4, 6, 5) if number[:1] == "3" and len(number) < 16 else (4,)))


def iban(rng: random.Random, country: str) -> str:
    """An IBAN of the country's structure with right check digits (and national ones, where python-stdnum knows them)."""
    structure = stdnum_iban._ibandb.info(country)[0][1]["bban"]
    while True:
        bban = "".join({"n": digits, "a": letters, "c": lambda r, n: letters(r, n, "ABCDEFGHJKLMNPRSTUVWXYZ0123456789")}[kind](rng, int(n))
                       for n, kind in _RUNS.findall(structure))
        if country == "BE":
            bban = bban[:10] + f"{int(bban[:10]) % 97 or 97:02d}"
        if country == "ES":
            from stdnum.es import ccc
            bban = bban[:8] + ccc.calc_check_digits(bban[:8] + "00" + bban[10:]) + bban[10:]
        number = country + stdnum_iban.calc_check_digits(f"{country}00{bban}") + bban
        if stdnum_iban.is_valid(number):
            return number


def email(rng: random.Random, market: str = "GB") -> str:
    """A mail address as people choose them."""
    words = load("values")
    first, last, nick = (rng.choice(words[key]) for key in ("mail_first", "mail_last", "mail_nick"))
    year = str(rng.randint(1955, 2006))
    local = rng.choice([f"{first}.{last}", f"{first}{last}", f"{first[0]}.{last}", f"{first}_{last}{year[2:]}", f"{last}.{first}", f"{nick}{digits(rng, 2)}", f"{first}{year}",
                        f"{first}-{last}", f"{first}.{last}+{rng.choice(['shop', 'orders', 'web'])}", f"{nick}.{first}"])
    domains = words["markets"].get(market, words["markets"]["GB"])["domains"]
    domain = rng.choice([rng.choice(domains)] * 5 + [f"{last}-{rng.choice(['bygg', 'consult', 'design', 'it'])}.{market.lower() if market not in ('GB', 'US') else 'com'}", f"mail.{last}.eu"])
    return f"{local}@{domain}"


@cache
def _example(region: str, kind: int):
    return phonenumbers.example_number_for_type(region, kind)


def phone(rng: random.Random, region: str, mobile: bool | None = None) -> phonenumbers.PhoneNumber:
    """A number that is valid in the region and in no reserved range."""
    kind = PhoneNumberType.MOBILE if (rng.random() < 0.7 if mobile is None else mobile) else PhoneNumberType.FIXED_LINE
    example = _example(region, kind)
    national = str(example.national_number)
    while True:
        number = phonenumbers.PhoneNumber()
        number.merge_from(example)
        head = 2 if len(national) > 7 else 1
        number.national_number = int(national[:head] + digits(rng, len(national) - head))
        if phonenumbers.is_valid_number_for_region(number, region) and not RESERVED_PHONES.match(e164(number)):
            return number


def e164(number: phonenumbers.PhoneNumber) -> str:
    return phonenumbers.format_number(number, PhoneNumberFormat.E164)


PHONE_STYLES = ("national", "international", "e164", "compact", "zeros", "dashed", "dotted", "optional zero", "slashed")


def write_phone(number: phonenumbers.PhoneNumber, style: str) -> str:
    """The number as people type it."""
    national, international = (phonenumbers.format_number(number, f) for f in (PhoneNumberFormat.NATIONAL, PhoneNumberFormat.INTERNATIONAL))
    code, rest = international.split(" ", 1)
    if style in ("international", "e164"):
        return international if style == "international" else e164(number)
    if style == "zeros":
        return f"00{code[1:]} {rest}"
    if style == "optional zero":
        return f"{code} (0){rest}" if national.startswith("0") and not rest.startswith("0") else international
    if style == "compact":
        return re.sub(r"\D", "", national)
    if style in ("dashed", "dotted"):
        return re.sub(r"[\s\-/().]+", "-" if style == "dashed" else ".", national).strip("-.")
    if style == "slashed" and national.startswith("0") and " " in national:
        head, tail = national.split(" ", 1)
        return f"{head}/{tail.replace(' ', '').replace('-', '')}"
    return national


def iban_styles(number: str) -> dict[str, str]:
    """IBANs as typed."""
    groups = chunks(number, 4)
    return {"plain": number, "spaced": " ".join(groups), "dashed": "-".join(groups), "lower": number.lower(), "lower spaced": " ".join(groups).lower()}


def card_styles(number: str) -> dict[str, str]:
    """Card numbers as typed."""
    groups = card_groups(number)
    return {"plain": number, "spaced": " ".join(groups), "dashed": "-".join(groups)}


def ipv4(rng: random.Random) -> str:
    """A public address outside the documentation blocks."""
    while True:
        parts = [rng.randint(1, 223), *(rng.randint(0, 255) for _ in range(2)), rng.randint(1, 254)]
        if parts[0] not in (10, 127, 169, 172, 192, 198, 203, 100):
            return ".".join(map(str, parts))


def ipv6(rng: random.Random) -> str:
    head = rng.choice(["2a02", "2001:9b1", "2003", "2a00", "2a01:e0a"])
    return ":".join([head, *(f"{rng.randint(1, 65535):x}" for _ in range(8 - len(head.split(":"))))])
