"""Personal data in a conversation: every detector's spans, what is found once looked for everywhere, no overlaps.

The conversation is the unit. Its texts are laid side by side as one shadow, so that a number told in two messages in a
row is one number, and a question of the agent's ("your card number?") announces what the customer answers.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from data_prep.pii import dates, known, names
from data_prep.pii.address import addresses
from data_prep.pii.announce import CUE_WORD, announced, in_small_letters, kind_of_word, words_for
from data_prep.pii.lexicon import COMMON, Lexicon, plain
from data_prep.pii.normalise import Shadow, shadow
from data_prep.pii.shapes import is_letters, names_by_shape
from data_prep.pii.structured import structured

PAUSE, NEXT = "\x1e", "\n"          # between two speakers; between two messages of one speaker
# Who wins where spans overlap.
PRIORITY = ["keep", "email", "iban", "card", "secret", "national_id", "document", "account", "phone", "url", "ip", "address", "name", "number", "date"]
PATIENCE = 3                        # turns of the agent for which a question stands
PERSONAL = {"card": "card", "account": "account", "phone": "phone", "document": "document", "secret": "secret", "device": "document", "iban": "iban", "national_id": "national_id"}


@dataclass(frozen=True, order=True)
class Span:
    """Characters [start, end) of one text that must not leave, what they are, and who found them."""

    start: int
    end: int
    kind: str
    text: str
    detector: str = "pattern"


@dataclass(frozen=True)
class Rules:
    """What stays: the company's own identifiers, and numbers of its business, which win over a detector's guess but not
    where they are only a part of something longer (five digits inside a phone number)."""

    public: tuple[re.Pattern, ...] = ()
    business: tuple[re.Pattern, ...] = ()


@dataclass
class Document:
    """A conversation's texts as one shadow. starts[i]: where text i begins in it."""

    texts: list[tuple[str, str]]          # (role, text)
    shadows: list[Shadow]
    seen: str = ""
    starts: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, texts: list[tuple[str, str]], language: str) -> Document:
        document, position, parts = cls(texts, [shadow(text, None if role == "tool" else language) for role, text in texts]), 0, []
        for i, (role, _) in enumerate(texts):
            if i:
                parts.append(NEXT if role == texts[i - 1][0] == "user" else PAUSE)
                position += 1
            document.starts.append(position)
            parts.append(document.shadows[i].text.replace(PAUSE, " "))
            position += len(parts[-1])
        document.seen = "".join(parts)
        return document

    def bounds(self, i: int) -> tuple[int, int]:
        return self.starts[i], self.starts[i] + len(self.shadows[i].text)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(text index, start, end in the original text) of a span of the shadow, cut where texts end."""
        i = bisect.bisect_right(self.starts, start) - 1
        while i < len(self.texts) and self.starts[i] < end:
            low, high = self.bounds(i)
            a, b = max(start, low), min(end, high)
            if a < b:
                yield i, *self.shadows[i].original(a - low, b - low)
            i += 1


def detect(texts: list[tuple[str, str]], locale: str, people: known.People, rules: Rules, lexicon: Lexicon, recognise: Callable | None = None) -> list[list[Span]]:
    """The spans of each text, in order, without overlaps.

    texts: (role, text) in the order of the conversation. recognise: a NER model, (texts, language) → spans per text (`pii/ner.py`).
    """
    document = Document.of(texts, lexicon.language)
    seen, market = document.seen, country_of(locale)
    found: list[tuple[int, int, str, str]] = [(*place, kind, "pattern") for *place, kind in structured(seen, market)]
    found += [(start, end, kind, "known") for start, end, kind in people.found(seen, lexicon)]
    found += [(start, end, "address", "pattern") for start, end in addresses(seen, market, lexicon.language)]
    found += _names(document, lexicon)
    found += _answers(document, lexicon, found)
    if recognise is not None:
        found += [(document.starts[i] + a, document.starts[i] + b, kind, "model") for i, spans in enumerate(recognise([s.text for s in document.shadows], lexicon.language)) for a, b, kind in spans]
    found += [(start, end, "date", "pattern") for start, end in dates.dates(seen, locale)]
    found += _spelled_numbers(document)
    found += _keep(seen, rules, found)
    found += _again(seen, _without_overlaps(seen, found), lexicon)
    spans: list[list[Span]] = [[] for _ in texts]
    for start, end, kind, detectors in _agreed(_without_overlaps(seen, found), found):
        for i, a, b in document.pieces(start, end) if kind != "keep" else ():
            spans[i].append(Span(a, b, kind, texts[i][1][a:b], detectors))
    return [_merged(sorted(each), texts[i][1]) for i, each in enumerate(spans)]


def country_of(locale: str) -> str | None:
    """The market of a locale: "sv-SE" → "SE"."""
    return locale.split("-")[1].upper() if "-" in locale else None


def _keep(seen: str, rules: Rules, found: list[tuple[int, int, str, str]]) -> Iterator[tuple[int, int, str, str]]:
    for pattern in rules.business:
        for match in pattern.finditer(seen):
            a, b = match.span()
            if not any(c <= a and b <= d and d - c > b - a for c, d, *_ in found):
                yield a, b, "keep", "declared"
    for pattern in rules.public:
        for match in pattern.finditer(seen):
            yield *match.span(), "keep", "declared"


def _names(document: Document, lexicon: Lexicon) -> Iterator[tuple[int, int, str, str]]:
    seen = document.seen
    asked = 0
    for i, (role, _) in enumerate(document.texts):
        low, high = document.bounds(i)
        if role == "tool":          # keys and codes, no prose: what is known, and what a key calls a name
            continue
        turn = names.turn_of(seen, low, high, role == "assistant", lexicon, asked > 0 and role == "user")
        if turn.asked and is_letters(seen, low, high):
            yield low, high, "name", "asked"
        for start, end, detector in names.find_names(turn, lexicon):
            yield start, end, "name", detector
        if role == "assistant":
            asked = PATIENCE if names.asks_for_a_name(turn, lexicon) or any(word.startswith(_spelling()) for word in turn.lower) or (len(turn.words) < 4 and not words_for("name").isdisjoint(turn.lower)) else asked - 1
    yield from ((start, end, "name", detector) for start, end, detector in names_by_shape(seen, [(role, *document.bounds(i)) for i, (role, _) in enumerate(document.texts)]))


@functools.cache
def _spelling() -> tuple[str, ...]:
    return tuple(words_for("spells"))


def _spelled_numbers(document: Document) -> Iterator[tuple[int, int, str, str]]:
    """Seven digits and more that somebody took the trouble to spell out, unless they are announced as an order's or the like."""
    for i, text in enumerate(document.shadows):
        for start, end in text.spelled:
            start, end = start + document.starts[i], end + document.starts[i]
            if end - start >= 7 and announced(document.seen, start)[:1] not in (["business"], ["amount"], ["version"]):
                yield start, end, "number", "pattern"


def _answers(document: Document, lexicon: Lexicon, found: list[tuple[int, int, str, str]]) -> Iterator[tuple[int, int, str, str]]:
    """What a customer answers in few words to an agent who asked for something personal: "1234", "no, 7", "anna.berg"."""
    asked: list[str] = []
    left = 0
    for i, (role, _) in enumerate(document.texts):
        low, high = document.bounds(i)
        text = document.seen[low:high]
        if role == "assistant":
            shown = [kind for start, end, kind, _ in found if low <= start and end <= high and kind in (*PERSONAL, "address")]
            wanted = _wanted(text) or ([*shown, "number"] if shown and "?" in text else [])
            asked, left = (wanted, PATIENCE) if wanted else (asked if left else [], left - 1)
        elif role == "user" and (own := [kind for kind in _wanted(text) if kind not in ("mail", "address")]) and any(c.isdigit() for c in text) and len(text.split()) <= 14:
            asked, left = own, PATIENCE          # "my card is 4111 1111", and the rest in the next message
        elif role == "user" and asked and left > 0 and len(text) <= 60 and len(text.split()) <= 8:
            for match in () if _money.search(text) else _answer.finditer(text):
                kind = asked[0]
                word = match.group()
                if kind == "mail" and sum(c.isdigit() for c in word) < 5 and (word.strip("@.").casefold() not in _little and not lexicon.flags(word.casefold()) & COMMON):
                    yield low + match.start(), low + match.end(), "email", "asked"
                elif kind in PERSONAL.values() and any(c.isdigit() for c in word):
                    yield low + match.start(), low + match.end(), kind, "asked"
                elif kind == "address" and (any(c.isdigit() for c in word) or (word[0].isupper() and lexicon.flags(word.casefold()) != COMMON)):
                    yield low + match.start(), low + match.end(), "address", "asked"


_money = re.compile(r"[€$£]|\d[.,]\d\d(?!\d)|\d ?(?:kr|sek|eur|euro|zł|chf|usd|,-)(?!\w)", re.IGNORECASE)
_answer = re.compile(r"[\w@.+'/-]*\w")
_little = {"at", "dot", "and", "it", "is", "the"}


def _wanted(text: str) -> list[str]:
    """The kinds of personal data that an agent's turn asks for, the last first; none where it asks for a number of the business."""
    kinds, a_number = [], False
    for match in CUE_WORD.finditer(text.casefold()):
        word = match.group()
        kind = kind_of_word(word)
        if kind in PERSONAL or kind == "mail":
            kinds.append(PERSONAL.get(kind, "mail"))
        elif kind is not None and kind.startswith("id "):
            kinds.append("national_id")
        elif kind == "business":
            kinds.append("business")
        elif word in words_for("address"):
            kinds.append("address")
        a_number |= word in words_for("number")
    if not kinds and a_number and "?" in text:
        return ["phone"]
    return [] if "business" in kinds[-1:] else [kind for kind in reversed(kinds) if kind != "business"]


def _again(seen: str, found: list[tuple[int, int, str, str]], lexicon: Lexicon) -> Iterator[tuple[int, int, str, str]]:
    """What was found once, wherever else it stands in the conversation."""
    people: dict[str, bool] = {}                 # word → only where it has a capital
    for start, end, kind, _ in found:
        if kind == "name":
            for match in names.WORD.finditer(seen, start, end):
                word = match.group()
                if len(word) > 2 and not (lexicon.flags(word.casefold()) == COMMON and word.islower()):
                    people[plain(word)] = bool(lexicon.flags(word.casefold()) & COMMON)
    if people:
        for match in names.WORD.finditer(seen):
            word = match.group()
            only_capital = people.get(plain(word))
            if only_capital is not None and not (only_capital and word.islower()):
                yield *match.span(), "name", "again"
    small = in_small_letters(seen)
    forms = {(kind, _bare(seen[start:end])) for start, end, kind, _ in found if kind not in ("name", "keep", "date", "number", "address")}
    places = [i for i, c in enumerate(seen) if c.isalnum()] if forms else []
    letters = "".join(small[i] for i in places)
    for kind, form in forms:
        at = letters.find(form) if len(form) >= 5 else -1
        while at >= 0:          # in whatever grouping
            start, end = places[at], places[at + len(form) - 1] + 1
            if end - start <= 4 * len(form):
                yield start, end, kind, "again"
            at = letters.find(form, at + len(form))
    for start, end, kind, _ in found:
        value = _bare(seen[start:end]) if kind in ("card", "iban", "account", "phone") else ""
        if len(value) >= 8 and value[-4:].isdigit():          # "ending in 1234"
            yield from ((*place, kind, "again") for place in known.occurrences(small, value[-4:]))
        elif kind == "address" and end - start >= 6:
            yield from ((*place, kind, "again") for place in known.occurrences(small, small[start:end]))


def _bare(text: str) -> str:
    return "".join(c for c in in_small_letters(text) if c.isalnum())


def _without_overlaps(seen: str, found: Iterable[tuple[int, int, str, str]]) -> list[tuple[int, int, str, str]]:
    """Of overlapping spans the one whose kind comes first in PRIORITY, then the longest, a mere answer last; what of the others stands out stays too."""
    chosen: list[tuple[int, int, str, str]] = []
    for start, end, kind, detector in sorted(set(found), key=lambda s: (s[3] == "asked", PRIORITY.index(s[2]), s[0] - s[1], s)):
        place = bisect.bisect(chosen, (start, end, "", ""))
        low = max(start, chosen[place - 1][1]) if place else start
        for other in [*chosen[place:bisect.bisect(chosen, (end, -1, "", ""))], (end, end, "", "")]:
            if low < other[0] and ((low == start and other[0] >= end) or (kind not in ("keep", "date") and any(c.isalnum() for c in seen[low:other[0]]))):
                bisect.insort(chosen, (low, min(end, other[0]), kind, detector))
            low = max(low, other[1])
    return chosen


def _agreed(chosen: list[tuple[int, int, str, str]], found: list[tuple[int, int, str, str]]) -> Iterator[tuple[int, int, str, str]]:
    """The chosen spans with everybody who found something there: "known+list"."""
    rest = sorted(found)
    first = 0
    for start, end, kind, detector in chosen:
        while first < len(rest) and rest[first][1] <= start and rest[first][0] < start - 200:
            first += 1
        others = set()
        for a, b, _, other in rest[first:]:
            if a >= end:
                break
            if b > start:
                others.add(other)
        others -= {"declared"} | ({"again"} if others != {"again"} else set())
        yield start, end, kind, "+".join(sorted(others or {detector}))


def _merged(spans: list[Span], text: str) -> list[Span]:
    """Spans in order; where two of the original touch the same character (an escape that stands for two), the second gives way."""
    kept: list[Span] = []
    for span in spans:
        if kept and span.start < kept[-1].end:
            if span.end > kept[-1].end:
                span = Span(kept[-1].end, span.end, span.kind, text[kept[-1].end:span.end], span.detector)
            else:
                continue
        kept.append(span)
    return kept


