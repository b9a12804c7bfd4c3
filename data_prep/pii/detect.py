"""Detectors: text → spans of personal data. Pure functions of the text, its locale and the names already known."""

from __future__ import annotations

import re
from dataclasses import dataclass

import phonenumbers
from stdnum import iban, luhn
from stdnum.be import nn as be_nn
from stdnum.de import idnr as de_idnr
from stdnum.dk import cpr as dk_cpr
from stdnum.es import dni as es_dni
from stdnum.fi import hetu as fi_hetu
from stdnum.fr import nir as fr_nir
from stdnum.gb import nhs as gb_nhs
from stdnum.it import codicefiscale as it_cf
from stdnum.nl import bsn as nl_bsn
from stdnum.no import fodselsnummer as no_fnr
from stdnum.pl import pesel as pl_pesel
from stdnum.se import personnummer as se_pnr
from stdnum.us import ssn as us_ssn


@dataclass(frozen=True, order=True)
class Span:
    start: int
    end: int
    kind: str
    text: str


# National ids are looked for only in conversations of their own market: elsewhere the same digits are an order number.
NATIONAL_IDS = {"BE": be_nn, "DE": de_idnr, "DK": dk_cpr, "ES": es_dni, "FI": fi_hetu, "FR": fr_nir, "GB": gb_nhs, "IT": it_cf,
                "NL": nl_bsn, "NO": no_fnr, "PL": pl_pesel, "SE": se_pnr, "US": us_ssn}
PRIORITY = ["keep", "email", "iban", "card", "national_id", "phone", "name", "address"]     # who wins where spans overlap

_email = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+(?<!\.)")
_iban = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}(?!\w)", re.IGNORECASE)
_card = re.compile(r"(?<![\w-])(?:\d[ -]?){11,18}\d(?![\w-])")
_id = re.compile(r"(?<![\w-])(?:\d[ .-]?|[A-Za-z](?=\d)|(?<=\d)[A-Za-z]|[-+](?=\d)){7,20}\w(?!\w)")
_it_id = re.compile(r"(?<!\w)[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z](?!\w)", re.IGNORECASE)
_phone_like = re.compile(r"\+?\d(?:[\d ()/.-]{5,}\d)")
_street_after = (r"(?:[A-ZÀ-Þ][\w'’-]+ ){1,3}(?:Street|Road|Lane|Avenue|Drive|Close|Way|Square|Court|Place|Hill|Gardens|Terrace|Crescent)"
                 r" \d{1,4}[A-Za-z]?")
_street_before = (r"\d{1,4}[A-Za-z]? (?:[A-ZÀ-Þ][\w'’-]+ ){1,3}(?:Street|Road|Lane|Avenue|Drive|Close|Way|Square|Court|Place|Hill|Gardens|Terrace|Crescent)")
_street_joined = (r"(?:[A-ZÀ-Þa-zß-ÿ][\w'’-]+ ){0,2}[\w'’-]{2,}(?:stra(?:ß|ss)e|str\.|weg|platz|allee|gasse|ring|straat|laan|plein|kade|gracht|dijk|gatan|vägen|gränd|torget|stigen"
                  r"|gata|väg|vej|gade|veien|katu|tie) \d{1,4} ?[A-Za-z]?(?!\w)")
_address = re.compile(rf"\b(?:{_street_after}|{_street_before}|{_street_joined})", re.UNICODE)


def country_of(locale: str) -> str | None:
    """The market of a locale: "sv-SE" → "SE"."""
    return locale.split("-")[1].upper() if "-" in locale else None


def detect(text: str, locale: str, known: dict[str, str], public: tuple[re.Pattern, ...] = (), business: tuple[re.Pattern, ...] = ()) -> list[Span]:
    """All personal data in one text: non-overlapping spans, in order.

    known: surface form → kind, of what the helpdesk already knows (names, e-mail, phone, address).
    public: the company's own identifiers, which win over everything. business: declared numbers such as orders, which
    win over a detector's guess but not where they are only a part of something longer (five digits inside a phone number).
    """
    found = [Span(m.start(), m.end(), "email", m.group()) for m in _email.finditer(text)]
    if any(character.isdigit() for character in text):
        found += _numbers(text, country_of(locale))
    for surface, kind in known.items():
        found += [Span(m.start(), m.end(), kind, m.group()) for m in re.finditer(rf"(?<!\w){re.escape(surface)}(?!\w)", text, re.IGNORECASE)]
    found += [Span(m.start(), m.end(), "address", m.group()) for m in _address.finditer(text)]
    declared = [Span(m.start(), m.end(), "keep", m.group()) for pattern in business for m in pattern.finditer(text)]
    found += [span for span in declared if not any(o.start <= span.start and span.end <= o.end and o.end - o.start > span.end - span.start for o in found)]
    found += [Span(m.start(), m.end(), "keep", m.group()) for pattern in public for m in pattern.finditer(text)]
    return [span for span in _without_overlaps(found) if span.kind != "keep"]


def _numbers(text: str, country: str | None) -> list[Span]:
    found = []
    for match in _iban.finditer(text):
        end = _longest_valid(match.group(), iban.is_valid)
        if end:
            found.append(Span(match.start(), match.start() + end, "iban", match.group()[:end]))
    found += [Span(m.start(), m.end(), "card", m.group()) for m in _card.finditer(text)
              if 13 <= sum(c.isdigit() for c in m.group()) <= 19 and luhn.is_valid(re.sub(r"[ -]", "", m.group()))]
    checker = NATIONAL_IDS.get(country or "")
    if checker:
        found += [Span(m.start(), m.end(), "national_id", m.group()) for pattern in (_id, _it_id) for m in pattern.finditer(text)
                  if checker.is_valid(m.group().strip())]
    if _phone_like.search(text):
        for match in phonenumbers.PhoneNumberMatcher(text, country or "GB", leniency=phonenumbers.Leniency.POSSIBLE):
            if sum(c.isdigit() for c in match.raw_string) >= 7 and not any(c.isalpha() for c in match.raw_string):
                found.append(Span(match.start, match.end, "phone", match.raw_string))
    return found


def _longest_valid(text: str, valid) -> int:
    """How much of the text, cut at a space, is valid: an IBAN may be followed by an ordinary word."""
    ends = [len(text), *[m.start() for m in re.finditer(r"[ -]", text)][::-1]]
    return next((end for end in ends if end >= 15 and valid(text[:end])), 0)


def _without_overlaps(spans: list[Span]) -> list[Span]:
    chosen: list[Span] = []
    for span in sorted(spans, key=lambda s: (PRIORITY.index(s.kind), -(s.end - s.start), s.start)):
        if all(span.end <= other.start or span.start >= other.end for other in chosen):
            chosen.append(span)
    return sorted(chosen)


def known_entities(customer: dict, agents: list[dict]) -> dict[str, str]:
    """Surface forms of what the helpdesk knows about the people in a conversation, the longest first.

    A name gives itself and each of its parts of three letters or more.
    """
    forms: dict[str, str] = {}
    for person in (customer, *agents):
        name = (person.get("name") or "").strip()
        for form in (name, *(part for part in re.split(r"[\s,]+", name) if len(part) >= 3)):
            if form:
                forms[form] = "name"
        for key in ("email", "phone", "address"):
            if person.get(key):
                forms[str(person[key])] = key
    return dict(sorted(forms.items(), key=lambda item: -len(item[0])))
