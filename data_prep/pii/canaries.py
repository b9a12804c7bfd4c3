"""Canaries: made-up customers whose every detail is known, sent through with the archive and looked for behind it.

Half are known to the helpdesk, half are not; each tells its details in a conversation of a few turns. All must be gone.
Their identifiers have right checksums and their numbers are ordinary, for a stand-in's would prove nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

import phonenumbers
from stdnum import iban, luhn

from data_prep.conversation import Conversation
from data_prep.pii.detect import country_of
from data_prep.pii.leak import bare
from data_prep.pii.lexicon import language_of, phrases
from data_prep.pii.structured import IBAN_LENGTHS
from data_prep.pii.surrogates import people_of

ELSEWHERE = ["en-GB"]          # where an archive has no market with IBANs


def canaries(count: int, seed: int, locales: Iterable[str]) -> Iterator[tuple[Conversation, list[str]]]:
    """Yield (conversation, what must not survive). locales: those of the archive, whose canaries these are."""
    known_to_us = sorted(locale for locale in set(locales) if language_of(locale) in phrases() and country_of(locale) in IBAN_LENGTHS) or ELSEWHERE
    for number in range(count):
        rng = random.Random(f"canary {seed} {number}")
        locale = known_to_us[number % len(known_to_us)]
        language, market = language_of(locale), country_of(locale)
        first, last = people_of(locale)
        name = f"{rng.choice(first)} {rng.choice(last)}"
        mail = f"{re.sub('[^a-z]', '', name.lower()) or 'kim'}{rng.randrange(1000)}@{rng.choice(['postbox', 'mailhaus', 'inbox'])}.{market.lower() if market != 'GB' else 'co.uk'}"
        secrets = {"mail": mail, "phone": _phone(market, rng), "card": _card(rng), "iban": _iban(market, rng)}
        lines = list(secrets.values())
        rng.shuffle(lines)
        introduces = rng.choice(phrases()[language]["introduces"])
        messages = [{"role": "user", "content": f"{introduces} {name}. {lines[0]}"}, {"role": "assistant", "content": f"{phrases()[language]['greets'][0]} {name.split()[0]}, ok?"},
                    {"role": "user", "content": f"{lines[1]}, {lines[2]}"}, {"role": "assistant", "content": f"{lines[1]}?"}, {"role": "user", "content": f"{lines[3]}\n{name}"}]
        known = number % 2 == 0
        customer = {"id": f"canary-{number}"} | ({"name": name, "email": mail, "phone": secrets["phone"]} if known else {})
        yield Conversation(f"canary-{seed}-{number}", messages, locale, customer=customer), [*secrets.values(), *(name.split() if known else [name])]


def survivors(texts: list[str], secrets: list[str]) -> list[str]:
    """Those secrets of which all letters and digits still stand somewhere."""
    words = {word.casefold() for word in re.findall(r"[^\W\d_]+", bare("\n".join(texts)))}
    compact = _compact(bare("\n".join(texts)))
    return [s for s in secrets if (s.casefold() in words if s.isalpha() else _compact(s) in compact)]


def _compact(text: str) -> str:
    return re.sub(r"[\W_]", "", text).casefold()


def _card(rng: random.Random) -> str:
    body = rng.choice(["4", "51", "2221", "37"])
    body += "".join(rng.choices("0123456789", k=(14 if body == "37" else 15) - len(body)))
    return body + luhn.calc_check_digit(body)


def _iban(market: str, rng: random.Random) -> str:
    letters = {"GB": "ABCD", "NL": "ABCD", "IT": "A"}.get(market, "")
    body = letters + "".join(rng.choices("0123456789", k=IBAN_LENGTHS[market] - 4 - len(letters)))
    return market + iban.calc_check_digits(f"{market}00{body}") + body          # the bank's own number may be nobody's: no market is drawn for ever


def _phone(market: str, rng: random.Random) -> str:
    number = phonenumbers.example_number_for_type(market, phonenumbers.PhoneNumberType.MOBILE)
    while True:
        number.national_number = int(str(number.national_number)[:-5] + "".join(rng.choices("0123456789", k=5)))
        if phonenumbers.is_valid_number(number):
            return phonenumbers.format_number(number, rng.choice([phonenumbers.PhoneNumberFormat.INTERNATIONAL, phonenumbers.PhoneNumberFormat.E164]))
