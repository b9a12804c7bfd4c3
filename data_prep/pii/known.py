"""The people the helpdesk knows: their names, addresses and numbers in every form in which they may turn up.

A part of a name alone, another case, without diacritics, with one letter wrong, inflected, with an initial, inside a
user name; a phone number in another grouping; a street without its number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rapidfuzz.distance import DamerauLevenshtein

from data_prep.pii.announce import in_small_letters
from data_prep.pii.lexicon import COMMON, MISSPELT, ORDINARY, Lexicon, dictionary, plain, profile
from data_prep.pii.names import WORD

KINDS = {"email": "email", "phone": "phone", "address": "address", "street": "address", "city": "address", "postcode": "address", "zip": "address",
         "iban": "iban", "card": "card", "national_id": "national_id", "personal_number": "national_id", "username": "name"}
_digits = re.compile(r"\d(?:[ ()./_-]{0,2}\d){4,}")
_handle = re.compile(r"(?<!\w)[^\W\d_][\w.'’-]*\w")


@dataclass
class People:
    """Everything known about the customer and the agents of one conversation."""

    parts: dict[str, str] = field(default_factory=dict)       # part of a name, plain → as written
    exact: dict[str, str] = field(default_factory=dict)       # other values → kind
    numbers: dict[str, str] = field(default_factory=dict)     # last digits of phones, ids … → kind
    full_names: list[str] = field(default_factory=list)
    particles: set[str] = field(default_factory=set)          # small words inside their names: "van", "de la", "'t"

    @classmethod
    def of(cls, persons: Iterable[dict]) -> People:
        people = cls()
        for person in persons:
            for key, value in person.items():
                text = str(value).strip() if isinstance(value, str | int) else ""
                if not text or key == "id":
                    continue
                if key == "name" or key.endswith("_name"):
                    people.full_names.append(text)
                    people.particles |= {piece.casefold() for piece in text.split() if piece.islower()}
                    for part in WORD.findall(text):
                        for piece in {part, *part.split("-")}:
                            if len(piece) > 1:
                                people.parts[plain(piece)] = piece
                    continue
                kind = KINDS.get(key)
                if kind is None:
                    continue
                people.exact[text] = kind
                digits = re.sub(r"\D", "", text)
                if kind not in ("address", "email", "name") and len(digits) >= 6:
                    people.numbers[digits[-9:] if kind == "phone" else digits] = kind
                if kind == "email" and len(text.split("@")[0]) >= 4:
                    people.exact[text.split("@")[0]] = "email"
                if kind == "address":
                    for part in re.split(r",\s*", text):
                        street = re.sub(r"^\d+\w?\s+|\s+\d+\s?\w?$", "", part)
                        people.exact.update({form: kind for form in (part, street) if len(form) >= 4 and not form.isdigit()})
        return people

    def found(self, seen: str, lexicon: Lexicon) -> Iterator[tuple[int, int, str]]:
        """(start, end, kind) of every mention in a text."""
        small = in_small_letters(seen)
        for value, kind in self.exact.items():
            yield from ((start, end, kind) for start, end in occurrences(small, value.lower()))
        if self.numbers:
            for match in _digits.finditer(seen):
                digits = re.sub(r"\D", "", match.group())
                for number, kind in self.numbers.items():
                    if number in digits or (len(digits) >= 6 and number.endswith(digits)):
                        yield *match.span(), kind
        if self.parts:
            yield from self._names(seen, lexicon)

    def _names(self, seen: str, lexicon: Lexicon) -> Iterator[tuple[int, int, str]]:
        hits = []
        for match in WORD.finditer(seen):
            word = match.group()
            if self._is_name(word, lexicon):
                hits.append(match.span())
                before = _particles.search(seen, max(0, match.start() - 20), match.start())
                yield before.start() if before and any(word in self.particles for word in before.group().casefold().split()) else match.start(), match.end(), "name"
        for start, end in hits:          # an initial beside a name: "A. Berg", "Anna B."
            for pattern, low, high in ((_initial_before, max(0, start - 6), start), (_initial_after, end, end + 5)):
                match = pattern.search(seen, low, high)
                if match and any(part.startswith(match.group(1).casefold()) for part in self.parts):
                    yield *match.span(1), "name"
        smooth = plain(seen)
        for match in _handle.finditer(seen) if any(len(part) >= 4 and part in smooth for part in self.parts) else ():
            word = match.group()
            if (not word.isalpha() or seen[match.start() - 1:match.start()] == "@") and any(len(part) >= 4 and plain(part) in plain(word) for part in self.parts):
                yield *match.span(), "name"
        initials = {"".join(plain(name)[0] for name in full.split()) for full in self.full_names}
        for match in _initials.finditer(seen):
            if re.sub(r"[. ]", "", plain(match.group())) in initials:
                yield *match.span(), "name"

    def _is_name(self, word: str, lexicon: Lexicon) -> bool:
        form = plain(word)
        if form in self.parts:
            flags = lexicon.flags(word.casefold())
            return not (flags & COMMON and word.islower()) or len(form) > 4 or flags != COMMON
        if len(form) < 4 or lexicon.flags(word.casefold()) == COMMON:
            return False
        forms = dictionary(lexicon.language)
        if lexicon.flags(word.casefold()) == ORDINARY and any(len(part) > 4 and part[:3] == form[:3] for part in self.parts) and plain(forms.get(word.casefold(), '')) in self.parts:
            return True                           # by the dictionary: Jonui is Jonas
        for part in self.parts:
            if len(part) < 4 or (part[0] != form[0] and part[1:] != form[1:]):
                continue
            shared = next((i for i, (one, other) in enumerate(zip(part, form, strict=False)) if one != other), min(len(part), len(form)))
            if shared >= 3 and len(part) - shared <= min(3, len(part) - 3) and len(form) - shared <= 4 and (word[0].isupper() or (len(part) > 4 and _is_rare(word.casefold(), lexicon))):
                return True                       # inflected with a change in the stem: Marek, Marka; Jonas, Jonui
            stem = part[:-1] if part[-1] in "aeiouyαοсая" and len(part) > 4 else part
            if form.startswith(stem) and len(form) - len(stem) <= 4:
                return True                       # inflected: Annan, Kowalskiego, Bergin
            if len(part) >= 5 and abs(len(part) - len(form)) <= 1 and DamerauLevenshtein.distance(form, part, score_cutoff=1) <= 1:
                return True
        compact = form.replace("-", "").replace("'", "")
        return len(compact) > 6 and any(len(a) > 2 and len(b) > 2 and compact == a + b for a in self.parts for b in self.parts if a != b)


def _is_rare(word: str, lexicon: Lexicon) -> bool:
    flags = lexicon.flags(word)
    return flags in (0, MISSPELT) or (flags == ORDINARY and profile(word, lexicon.language)[0] < 3)


def occurrences(text: str, value: str) -> Iterator[tuple[int, int]]:
    """Where a value stands in a text as a whole word or words."""
    start = text.find(value)
    while start >= 0 and value:
        end = start + len(value)
        if not (start and _is_word(text[start - 1])) and not (end < len(text) and _is_word(text[end])):
            yield start, end
        start = text.find(value, start + 1)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


_particles = re.compile(r"(?<![\w'’])(?:[\w'’]{1,4} ){1,2}$")
_initials = re.compile(r"(?<!\w)[^\W\d_][. ]{1,2}(?:[^\W\d_][. ]{1,2})?[^\W\d_]\.(?!\w)")
_initial_before = re.compile(r"(?<!\w)(\w)\.? ?(?:\w\. ?)?$")
_initial_after = re.compile(r" (\w)(?!\w)\.?")
