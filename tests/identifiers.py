"""Made-up identifiers of 23 markets with right checksums, drawn at random, in the ways in which people write them."""

from __future__ import annotations

import functools
import importlib
import random
from collections.abc import Iterator

import phonenumbers
from stdnum import iban as stdnum_iban
from stdnum import luhn

from data_prep.pii import fit
from data_prep.pii.detect import Rules, Span, detect
from data_prep.pii.known import People
from data_prep.pii.structured import IBAN_LENGTHS

CARDS = [("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("2720", 16), ("37", 15), ("34", 15), ("36", 14), ("6011", 16), ("65", 16), ("3530", 16), ("62", 16),
         ("62", 19), ("5018", 12), ("6759", 16), ("6304", 19), ("4", 13), ("4", 19)]


@functools.cache
def shipped() -> fit.Fit:
    return fit.load()


def found(text: str, locale: str, business: tuple = (), **customer: str) -> list[Span]:
    """What the shipped detectors find in one text of a customer's."""
    return detect([("user", text)], locale, People.of([customer]), Rules(business=business), shipped().lexicon(locale))[0]


def national_id(market: str, rng: random.Random) -> str:
    """A valid national id of a market, of the kind that its people have most."""
    year, month, day = rng.randint(1940, 2004), rng.randint(1, 12), rng.randint(1, 28)
    ymd, dmy = f"{year % 100:02d}{month:02d}{day:02d}", f"{day:02d}{month:02d}{year % 100:02d}"

    def some(count: int, among: str = "0123456789") -> str:
        return "".join(rng.choice(among) for _ in range(count))

    if market == "HU":
        body = some(8)
        return body + str(sum(int(c) * (7 if i % 2 else 3) for i, c in enumerate(body)) % 10)
    draw, module = {
        "SE": (lambda: ymd + rng.choice(["-", ""]) + some(4), "se.personnummer"), "NO": (lambda: dmy + some(5), "no.fodselsnummer"), "DK": (lambda: dmy + rng.choice(["-", ""]) + some(4), "dk.cpr"),
        "FI": (lambda: dmy + ("-" if year < 2000 else "A") + f"{rng.randint(2, 899):03d}" + some(1, "0123456789ABCDEFHJKLMNPRSTUVWXY"), "fi.hetu"),
        "DE": (lambda: some(1, "123456789") + some(10), "de.idnr"), "AT": (lambda: some(4) + dmy, "at.vnr"), "CH": (lambda: f"756.{some(4)}.{some(4)}.{some(2)}", "ch.ssn"), "NL": (lambda: some(9), "nl.bsn"),
        "BE": (lambda: f"{ymd[:2]}.{ymd[2:4]}.{ymd[4:]}-{some(3)}.{some(2)}", "be.nn"), "FR": (lambda: some(1, "12") + ymd[:4] + f"{rng.randint(1, 95):02d}" + some(8), "fr.nir"),
        "ES": (lambda: some(8) + some(1, "TRWAGMYFPDXBNJZSQVHLCKE"), "es.dni"),
        "IT": (lambda: some(6, "BCDFGLMNPRST") + ymd[:2] + "ABCDEHLMPRST"[month - 1] + f"{day:02d}" + some(1, "ABCDEFGH") + some(3) + some(1, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"), "it.codicefiscale"),
        "PT": (lambda: some(1, "123") + some(8), "pt.nif"), "PL": (lambda: ymd + some(5), "pl.pesel"), "CZ": (lambda: f"{ymd}/{some(4)}", "cz.rc"), "SK": (lambda: f"{ymd}/{some(4)}", "sk.rc"),
        "GR": (lambda: dmy + some(5), "gr.amka"), "RO": (lambda: some(1, "12") + ymd + f"{rng.randint(1, 46):02d}" + some(4), "ro.cnp"), "IE": (lambda: some(7) + some(1, "ABCDEFGHIJKLMNOPQRSTUVW"), "ie.pps"),
        "GB": (lambda: some(10), "gb.nhs"), "US": (lambda: f"{rng.randint(1, 665):03d}-{some(2)}-{some(4)}", "us.ssn"), "CA": (lambda: some(1, "1234567") + some(8), "ca.sin")}[market]
    valid = importlib.import_module(f"stdnum.{module}").is_valid
    return next(text for text in iter(draw, None) if valid(text))


def card(rng: random.Random) -> str:
    first, length = rng.choice(CARDS)
    body = first + "".join(rng.choice("0123456789") for _ in range(length - len(first) - 1))
    return body + luhn.calc_check_digit(body)


def iban(market: str, rng: random.Random) -> str:
    letters = {"GB": 4, "NL": 4, "IE": 4, "RO": 4, "IT": 1}.get(market, 0)
    while True:
        body = "".join(rng.choice("ABCDEFGH") for _ in range(letters)) + "".join(rng.choice("0123456789") for _ in range(IBAN_LENGTHS[market] - 4 - letters))
        made = market + stdnum_iban.calc_check_digits(f"{market}00{body}") + body
        if stdnum_iban.is_valid(made):
            return made


def phone(market: str, form: str, rng: random.Random) -> str:
    """A valid mobile number; form: INTERNATIONAL, E164 or NATIONAL."""
    example = phonenumbers.example_number_for_type(market, phonenumbers.PhoneNumberType.MOBILE)
    while True:
        example.national_number = int(str(example.national_number)[:-5] + "".join(rng.choice("0123456789") for _ in range(5)))
        if phonenumbers.is_valid_number(example):
            return phonenumbers.format_number(example, getattr(phonenumbers.PhoneNumberFormat, form))


def written(identifier: str, kind: str) -> Iterator[str]:
    """An identifier plain, in lower case, and where it is one run of characters also spaced and dashed."""
    yield identifier
    yield identifier.lower()
    if kind in ("card", "iban"):
        fours = [identifier[i:i + 4] for i in range(0, len(identifier), 4)]
        yield from (" ".join(fours), "-".join(fours))
