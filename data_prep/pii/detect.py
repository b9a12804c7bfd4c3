"""Detectors: a text → spans of personal data. Pure functions of the text, its locale and what is already known."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass

from data_prep.pii.normalise import shadow
from data_prep.pii.structured import structured


@dataclass(frozen=True, order=True)
class Span:
    start: int
    end: int
    kind: str
    text: str


PRIORITY = ["keep", "email", "iban", "card", "national_id", "phone", "name", "address"]     # who wins where spans overlap

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
    """All personal data in one text: non-overlapping spans, in order. Detectors see the text's shadow, spans are of the text itself.

    known: surface form → kind, of what the helpdesk already knows (names, e-mail, phone, address).
    public: the company's own identifiers, which win over everything. business: declared numbers such as orders, which
    win over a detector's guess but not where they are only a part of something longer (five digits inside a phone number).
    """
    plain = shadow(text)
    seen = plain.text
    found = [(*place, kind) for *place, kind in structured(seen, country_of(locale))]
    for surface, kind in known.items():
        found += [(*match.span(), kind) for match in re.finditer(rf"(?<!\w){re.escape(surface)}(?!\w)", seen, re.IGNORECASE)]
    found += [(*match.span(), "address") for match in _address.finditer(seen)]
    declared = [match.span() for pattern in business for match in pattern.finditer(seen)]
    found += [(a, b, "keep") for a, b in declared if not any(c <= a and b <= d and d - c > b - a for c, d, _ in found)]
    found += [(*match.span(), "keep") for pattern in public for match in pattern.finditer(seen)]
    spans = [(*plain.original(start, end), kind) for start, end, kind in found if end > start]
    return [span for span in _without_overlaps([Span(a, b, kind, text[a:b]) for a, b, kind in spans]) if span.kind != "keep"]
def _without_overlaps(spans: list[Span]) -> list[Span]:
    """Of overlapping spans the one whose kind comes first in PRIORITY, then the longest; in order."""
    chosen: list[Span] = []
    for span in sorted(spans, key=lambda s: (PRIORITY.index(s.kind), -(s.end - s.start), s.start)):
        place = bisect.bisect(chosen, span)
        if (place == 0 or chosen[place - 1].end <= span.start) and (place == len(chosen) or span.end <= chosen[place].start):
            chosen.insert(place, span)
    return chosen


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
