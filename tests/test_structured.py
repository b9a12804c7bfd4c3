"""Identifiers of 23 markets: found however they are written, business numbers left alone, nothing slow or broken by odd input."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.pii.announce import is_samordningsnummer, is_taj, markets
from data_prep.pii.normalise import shadow
from data_prep.pii.structured import IBAN_LENGTHS, structured
from tests import identifiers

AROUND = {"card": ["pay with {}", "{} please", "is {}, ok?"], "iban": ["my iban is {}", "refund to {} please", "{}"],
          "national_id": ["{}", "here it is: {}", "born, {} thanks"], "phone": ["{}", "you can reach me at {} please", "the new one: {}."]}


def missed(identifier: str, text: str, market: str) -> bool:
    """Whether a letter or digit of the identifier survives in the text."""
    start = text.index(identifier)
    covered = {place for span in identifiers.found(text, f"en-{market}") for place in range(span.start, span.end)}
    return any(text[place].isalnum() and place not in covered for place in range(start, start + len(identifier)))


@pytest.mark.parametrize("market", sorted(markets()))
def test_identifiers_of_a_market_are_found_however_they_are_written(market):
    rng = random.Random(f"seed {market}")
    lost, total = [], 0
    for _ in range(12):
        made = [("national_id", identifiers.national_id(market, rng)), ("card", identifiers.card(rng))]
        made += [("iban", identifiers.iban(market, rng))] if market in IBAN_LENGTHS else []
        made += [("phone", identifiers.phone(market, form, rng)) for form in ("INTERNATIONAL", "E164", "NATIONAL")]
        for kind, identifier in made:
            for form in identifiers.written(identifier, kind):
                total += 1
                if missed(form, rng.choice(AROUND[kind]).format(form), market):
                    lost.append((kind, form))
    assert total > 100
    assert not lost


DISGUISED = {
    "zero width": "card 4111\u200b1111\u200b1111\u200b1111", "full width": "card ４１１１ １１１１ １１１１ １１１１", "arabic digits": "phone +٤٤ ٧٧٠٠ ٩٠٠١٢٣", "keycaps": "card 4️⃣1️⃣1️⃣1️⃣ 1111 1111 1111",
    "look-alike letter": "refund to SЕ3550000000054910000003", "entity": "mail anna&#64;firma.se", "percent": "https://shop.example/?m=anna%40firma.se", "json escape": '{"mail": "anna\\u0040firma.se"}',
    "at and dot": "write to anna dot berg at firma dot se", "brackets": "anna [at] firma.se", "swedish": "anna snabel-a firma punkt se", "polish": "kasia małpa firma kropka pl", "spaced out": "j o h n @ f i r m a . d e",
    "spelled": "my number is oh seven seven double zero nine zero oh one two three", "german spelled": "meine Nummer ist null eins sieben einundzwanzig drei vier fünf sechs sieben",
    "line break": "card 4111 1111\n1111 1111", "dots": "card 4111.1111.1111.1111", "typo": "my card is 4111 1111 1111 1112", "next to a word": "iban:DE89370400440532013000,danke"}


@pytest.mark.parametrize("kind", DISGUISED)
def test_disguises_come_off(kind):
    text = DISGUISED[kind]
    left = text
    for span in reversed(identifiers.found(text, "de-DE" if "Nummer" in text or "danke" in text else "en-GB")):
        left = left[: span.start] + left[span.end:]
    assert not any(character.isdigit() for character in shadow(left).text), left
    assert not any(word in shadow(left).text for word in ("anna", "kasia", "firma", "j o h n", "seven", "sieben"))


BUSINESS = ["order 48213", "my order is 7719345", "Bestellung 10482213", "tracking 00340434292135100186", "JJD000390007882199100", "1.299,00 EUR", "€ 1 299,50", "version 12.4.0.1", "ABC-1234-XY",
            "at 12:45 on 12.03.2026", "2026-03-11 14:30", "error ERR4410023", "10.1000/882211.7743", "INC0012345", "1998 2004 2010", "120 x 200 x 35 cm", "3 of 250 pieces", "invoice 20261122", "50 % off", "case 204411-2211"]


def test_business_numbers_are_left_alone():
    touched = [(market, text) for market in markets() for text in BUSINESS if structured(shadow(text).text, market)]
    assert len(touched) <= 0.03 * len(BUSINESS) * len(markets()), touched


@given(st.text(alphabet="0123456789 -.+()abAB@:/_\n", max_size=120))
def test_without_re2_the_same_is_found(text):
    assert structured(text, "SE", linear=True) == structured(text, "SE", linear=False)


def test_prose_is_left_alone():
    for text, locale in (("I am at home at one or two", "en-GB"), ("We met at the station, dot", "en-GB"), ("one two three, go", "en-GB"), ("ein zwei drei", "de-DE")):
        assert identifiers.found(text, locale) == [], text


def test_ids_that_python_stdnum_lacks():
    assert is_taj("111111110")
    assert not is_taj("111111111")
    assert is_samordningsnummer("701063-2391".replace("-", ""))
    assert not is_samordningsnummer("7010032391")


@given(st.text(max_size=200))
def test_a_shadow_points_back_into_its_text(text):
    plain = shadow(text)
    places = [plain.original(i, i + 1) for i in range(len(plain.text))]
    assert all(0 <= start < end <= len(text) for start, end in places)
    assert [start for start, _ in places] == sorted(start for start, _ in places)
    if text.isascii() and not set(text) & set("&%\\<"):
        assert plain.text == text


@given(st.text(alphabet="0123456789 -+@.aZ&#;%4\\u\ud800\x00é४", max_size=300))
def test_no_text_breaks_it(text):
    spans = identifiers.found(text, "de-DE")
    assert all(text[s.start:s.end] == s.text for s in spans)
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["1", "1 ", "a@", "4111 1111 ", "at dot ", "one two ", "&#64;", "+49 ", "DE89 "])
def test_time_grows_with_length_and_no_faster(unit):
    def seconds(count: int) -> float:
        text = unit * (count // len(unit))
        began = time.perf_counter()
        identifiers.found(text, "de-DE")
        return time.perf_counter() - began

    seconds(1000)
    short, long = (min(seconds(count) for _ in range(3)) for count in (20_000, 100_000))
    assert long < 5 * 2 * short + 0.05, (short, long)
