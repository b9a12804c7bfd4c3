"""National identity numbers of 23 markets with right check digits: python-stdnum where it calculates them, a search where it only checks,
own arithmetic for the Hungarian TAJ and the British National Insurance number."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from importlib import import_module

from stdnum import ean, luhn
from stdnum.iso7064 import mod_11_10

from benchmarks.pii.text import load
from benchmarks.pii.values import digits, letters, shape

NINO_FIRST, NINO_SECOND = "ABCEGHJKLMNOPRSTWXYZ", "ABCEGHJKLMNPRSTWXYZ"
NINO_NEVER = {"BG", "GB", "KN", "NK", "NT", "TN", "ZZ"}
HETU = "0123456789ABCDEFHJKLMNPRSTUVWXY"


def born(rng: random.Random, first: int = 1940, last: int = 1999) -> datetime.date:
    return datetime.date(first, 1, 1) + datetime.timedelta(days=rng.randrange((last - first + 1) * 365))


def search(module: str, draw: Callable[[], str]) -> str:
    """Draw until python-stdnum accepts."""
    valid = import_module(f"stdnum.{module}").is_valid
    while not valid(number := draw()):
        pass
    return number


def taj_digit(body: str) -> str:
    """The ninth digit of a Hungarian TAJ: weights 3 and 7 in turn, modulo 10."""
    return str(sum(int(d) * (3, 7)[i % 2] for i, d in enumerate(body)) % 10)


def se(rng):
    birth = born(rng, 1940, 2007)
    body = f"{birth:%y%m%d}" + digits(rng, 3)
    return (f"{birth:%Y}"[:2] if rng.random() < 0.35 else "") + body + luhn.calc_check_digit(body)


def no(rng):
    from stdnum.no import fodselsnummer as module

    def draw():
        body = f"{born(rng, 1940, 1999):%d%m%y}{rng.randint(0, 499):03d}"
        body += module.calc_check_digit1(body + "00")
        return body + module.calc_check_digit2(body + "0")
    return search("no.fodselsnummer", draw)


def dk(rng):
    from stdnum.dk import cpr

    def draw():
        return f"{born(rng, 1940, 1999):%d%m%y}{rng.randint(1, 3999):04d}"
    number = search("dk.cpr", draw)
    while cpr.checksum(number):
        number = search("dk.cpr", draw)
    return number


def fi(rng):
    birth = born(rng, 1940, 2007)
    number = f"{birth:%d%m%y}{rng.randint(2, 899):03d}"
    return number[:6] + ("-" if birth.year < 2000 else "A") + number[6:] + HETU[int(number) % 31]


def de(rng):
    def draw():
        kept = rng.sample("0123456789", 9)
        body = [*kept, rng.choice(kept)]
        rng.shuffle(body)
        number = "".join(body)
        return number + mod_11_10.calc_check_digit(number)
    return search("de.idnr", draw)


def at(rng):
    return search("at.vnr", lambda: f"{rng.randint(100, 999)}{rng.randint(0, 9)}{born(rng):%d%m%y}")


def ch(rng):
    body = "756" + digits(rng, 9)
    return body + ean.calc_check_digit(body)


def be(rng):
    body = f"{born(rng):%y%m%d}{rng.randint(1, 997):03d}"
    return body + f"{97 - int(body) % 97:02d}"


def fr(rng):
    from stdnum.fr import nir
    department = rng.choice([d for d in range(1, 96) if d != 20])
    body = f"{rng.choice('12')}{born(rng):%y%m}{department:02d}{rng.randint(1, 400):03d}{rng.randint(1, 600):03d}"
    return body + nir.calc_check_digits(body)


def es(rng):
    from stdnum.es import dni, nie
    if rng.random() < 0.3:
        body = rng.choice("XYZ") + digits(rng, 7)
        return body + nie.calc_check_digit(body)
    body = str(rng.randint(1, 7)) + digits(rng, 7)
    return body + dni.calc_check_digit(body)


def it(rng):
    from stdnum.it import codicefiscale
    birth = born(rng)
    day = birth.day + rng.choice([0, 40])
    body = (letters(rng, 6, "BCDFGLMNPRSTVZ") + f"{birth:%y}" + "ABCDEHLMPRST"[birth.month - 1] + f"{day:02d}" + rng.choice("ABCDEFGHIL") + f"{rng.randint(1, 899):03d}")
    return body + codicefiscale.calc_check_digit(body)


def pt(rng):
    from stdnum.pt import nif
    body = rng.choice("123") + digits(rng, 7)
    return body + nif.calc_check_digit(body)


def pl(rng):
    from stdnum.pl import pesel
    birth = born(rng, 1940, 2006)
    body = f"{birth:%y}{birth.month + (20 if birth.year >= 2000 else 0):02d}{birth:%d}" + digits(rng, 4)
    return body + pesel.calc_check_digit(body)


def cz(rng):
    def draw():
        birth = born(rng, 1955, 2004)
        return f"{birth:%y}{birth.month + rng.choice([0, 50]):02d}{birth:%d}" + digits(rng, 4)
    return search("cz.rc", draw)


def gr(rng):
    if rng.random() < 0.4:
        from stdnum.gr import vat
        body = rng.choice("01") + digits(rng, 7)
        return body + vat.calc_check_digit(body)
    body = f"{born(rng):%d%m%y}" + digits(rng, 4)
    return body + luhn.calc_check_digit(body)


def ro(rng):
    from stdnum.ro import cnp
    birth = born(rng, 1940, 2006)
    body = f"{rng.choice('12' if birth.year < 2000 else '56')}{birth:%y%m%d}{rng.randint(1, 46):02d}{rng.randint(1, 999):03d}"
    return body + cnp.calc_check_digit(body)


def hu(rng):
    body = digits(rng, 8)
    return body + taj_digit(body)


def ie(rng):
    return search("ie.pps", lambda: digits(rng, 7) + letters(rng, 1, "ABCDEFGHIJKLMNOPQRSTUVW") + rng.choice(["", "", "A"]))


def gb(rng):
    if rng.random() < 0.3:
        return search("gb.nhs", lambda: rng.choice("4567") + digits(rng, 9))
    prefix = "GB"
    while prefix in NINO_NEVER:
        prefix = rng.choice(NINO_FIRST) + rng.choice(NINO_SECOND)
    return prefix + digits(rng, 6) + rng.choice("ABCD")


def us(rng):
    return search("us.ssn", lambda: f"{rng.randint(1, 899):03d}{rng.randint(1, 99):02d}{rng.randint(1, 9999):04d}")


def ca(rng):
    body = rng.choice("1234567") + digits(rng, 7)
    return body + luhn.calc_check_digit(body)


MAKERS = {"SE": se, "NO": no, "DK": dk, "FI": fi, "DE": de, "AT": at, "CH": ch, "NL": lambda rng: search("nl.bsn", lambda: rng.choice("12") + digits(rng, 8)), "BE": be, "FR": fr,
          "ES": es, "IT": it, "PT": pt, "PL": pl, "CZ": cz, "SK": cz, "GR": gr, "RO": ro, "HU": hu, "IE": ie, "GB": gb, "US": us, "CA": ca}
MODULES = {"SE": ["se.personnummer"], "NO": ["no.fodselsnummer"], "DK": ["dk.cpr"], "FI": ["fi.hetu"], "DE": ["de.idnr"], "AT": ["at.vnr"], "CH": ["ch.ssn"], "NL": ["nl.bsn"],
           "BE": ["be.nn"], "FR": ["fr.nir"], "ES": ["es.dni", "es.nie"], "IT": ["it.codicefiscale"], "PT": ["pt.nif"], "PL": ["pl.pesel"], "CZ": ["cz.rc"], "SK": ["sk.rc"],
           "GR": ["gr.amka", "gr.vat"], "RO": ["ro.cnp"], "IE": ["ie.pps"], "GB": ["gb.nhs"], "US": ["us.ssn"], "CA": ["ca.sin"]}


def is_valid(market: str, number: str) -> bool:
    """Is it one of the market's national numbers?"""
    compact = "".join(c for c in number.upper() if c.isalnum())
    if market == "HU":
        return len(compact) == 9 and compact.isdigit() and taj_digit(compact[:8]) == compact[8]
    nino = market == "GB" and len(compact) == 9 and compact[0] in NINO_FIRST and compact[1] in NINO_SECOND and compact[2:8].isdigit() and compact[8] in "ABCD" and compact[:2] not in NINO_NEVER
    if market == "FI":
        compact = number.upper()
    return nino or any(import_module(f"stdnum.{module}").is_valid(compact) for module in MODULES[market])


def word(market: str, number: str, language: str, rng: random.Random) -> str:
    """What people call this very number."""
    words = load("values")["markets"][market]["words"]
    if market == "GR":
        return words[0] if len(number) == 11 else words[1]
    if market == "GB":
        return rng.choice(words[3:] if number.isdigit() else words[:3])
    french = market in ("BE", "CA", "CH") and language == "fr"
    own = {"BE": words[2:] if french else words[:2], "CA": words[2:] if french else words[:2], "CH": words[2:] if language in ("fr", "it") else words[:2]}
    return rng.choice(own.get(market, words))


def styles(market: str, number: str) -> dict[str, str]:
    """The number in each way it is written; lower case where it has letters."""
    shapes = [s for s in load("values")["markets"][market]["shapes"] if s.count("#") == len(number)]
    nhs = market == "GB" and number.isdigit()
    written = {s: shape(s, number) for s in shapes if nhs == (s in ("### ### ####", "##########")) or market != "GB"}
    if market == "ES" and number[0] in "XYZ":
        written = {"#########": number, "#-#######-#": shape("#-#######-#", number)}
    if not number.isdigit() and number != number.lower():
        written |= {f"{s} lower": text.lower() for s, text in written.items()}
    return written
