"""Stand-ins for personal data: realistic, the same for the same entity in a conversation, never anybody's own.

Identifiers come only from ranges reserved for fiction (`reserved.yaml`), or carry a deliberately wrong checksum where no
such range exists, so that the leak check can be closed-world: a valid identifier outside these is a leak.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import re

import phonenumbers
from stdnum import iban, luhn

from data_prep.pii.announce import data, markets
from data_prep.pii.lexicon import COMMON, FIRST, LAST, Lexicon, language_of, listed_names, plain
from data_prep.pii.names import WORD
from data_prep.pii.normalise import shadow
from data_prep.pii.structured import IBAN_LENGTHS

NUMBERS = ("card", "iban", "national_id", "phone", "account")
MODES = ("surrogate", "placeholder", "slot")


def reserved() -> dict:
    """Ranges that nobody is reached under or identified by."""
    return data("reserved.yaml")


@functools.cache
def streets(language: str) -> list[str]:
    table = data("streets.yaml")
    listed = table.get(language, table["en"])
    return listed if isinstance(listed, list) else [begin + end for begin in listed["begin"] for end in listed["end"]]


@functools.cache
def people_of(locale: str) -> tuple[list[str], list[str]]:
    """(first names, last names) a stand-in in this locale may have: single words in the letters of the language."""
    first, last = listed_names()
    code, language = locale.replace("-", "_"), language_of(locale)
    near = next((c for c in (code, {"no": "no_NO", "nb": "no_NO", "en": "en_GB", "ga": "ga_IE"}.get(language), *sorted(c for c in first if c.split("_")[0] == language), "en_GB") if c and len(first.get(c, ())) >= 40 and len(last.get(c, ())) >= 40), "en_GB")
    return tuple(sorted(n for n in lists[near] if (n.isalpha() and len(n) > 2 and n[0].isupper() and n[1:].islower()) or (not n.isascii() and n.isalpha() and len(n) > 2)) for lists in (first, last))


def is_reserved_phone(digits: str) -> bool:
    """Whether a number, with or without country code, lies in a range reserved for fiction."""
    return _reserved_phones().fullmatch(digits) is not None


@functools.cache
def _reserved_phones() -> re.Pattern:
    forms = {re.sub(r"[^\d#]", "", form).replace("#", r"\d") for ranges in reserved()["phones"].values() for pair in ranges for form in pair}
    return re.compile(f"(?:00)?(?:{'|'.join(sorted(forms))})")


def is_no_id(digits: str, market: str | None) -> bool:
    """Whether no check of the market accepts these digits as one of its people's ids."""
    rules = markets().get(market)
    return rules is None or len(digits) not in rules.digits or not any(check(digits) for check in rules.checks)


def _has_an_ids_shape(text: str) -> bool:
    return any(market.shape.fullmatch(text) and any(check(text.replace(" ", "")) for check in market.checks) for market in markets().values() if market.shape)


class Surrogates:
    """The stand-ins of one conversation, drawn by an HMAC of key, scope and entity (RFC 2104, SHA-256).

    scope: what stand-ins are stable in, the id of the conversation or of the customer. taken: names that occur in the
    conversation (nobody is renamed to somebody in it). known: value in small letters → slot name, for mode "slot".
    """

    def __init__(self, key: bytes, scope: str, locale: str, lexicon: Lexicon, taken: set[str] = frozenset(), mode: str = "surrogate", known: dict[str, str] | None = None, parts: dict[str, str] | None = None):
        self.key = hmac.new(key, scope.encode(), hashlib.sha256).digest()
        self.locale, self.lexicon, self.mode = locale, lexicon, mode
        self.language, self.market = language_of(locale), locale.split("-")[1].upper() if "-" in locale else None
        self.taken = {plain(word) for word in taken}
        self.known, self.parts = known or {}, parts or {}
        self.given: dict[tuple[str, str], str] = {}
        self.used: set[str] = set()          # names that somebody got already: two people never share a stand-in
        self.indices: dict[str, int] = {}

    def of(self, kind: str, text: str) -> str:
        """The stand-in of one span of text."""
        if self.mode != "surrogate":
            return self._label(kind, text)
        if kind == "name":
            return self._name(text)
        key = (kind, _normal(text))
        if kind in NUMBERS and sum(c in "0123456789" for c in text) < 4:          # told in words or in digits of another script
            said = shadow(text, self.language).text
            text = said if sum(c.isdigit() for c in said) >= 4 else text
        if key not in self.given and kind in NUMBERS and not any(c.isdigit() for c in text):
            self.given[key] = "0000"
        if key not in self.given:
            self.given[key] = self._ending(kind, text) or getattr(self, f"_{kind}")(text)
        made = self.given[key]
        return made.lower() if kind == "address" and text.islower() else made

    def _label(self, kind: str, text: str) -> str:
        """[IBAN_1]: one number per entity and kind, or {{customer.iban}} where the helpdesk knows the value."""
        key = (kind, plain(_normal(text)))
        if key not in self.given:
            slot = self.known.get(text.casefold()) if self.mode == "slot" else None
            self.indices[kind] = self.indices.get(kind, 0) + (slot is None)
            self.given[key] = "{{" + slot + "}}" if slot else f"[{kind.upper()}_{self.indices[kind]}]" if self.mode == "placeholder" else "{{" + f"{kind}_{self.indices[kind]}" + "}}"
        return self.given[key]

    def number(self, kind: str, text: str) -> int:
        """64 pseudorandom bits, always the same for this entity under this key and scope."""
        return int.from_bytes(hmac.new(self.key, f"{kind}\x00{_normal(text)}".encode(), hashlib.sha256).digest()[:8], "big")

    def _ending(self, kind: str, text: str) -> str | None:
        """"Card ending in 1234": the last digits of the stand-in of the number that ends so."""
        if kind not in ("card", "account", "iban", "phone") or not text.isdigit() or len(text) != 4:
            return None
        return next((re.sub(r"\D", "", made)[-4:] for (k, original), made in self.given.items() if k == kind and len(original) > 6 and original.endswith(text)), None)

    # Names: word by word, so that "Anna", "Karlsson" and "Anna Karlsson" stay one person.

    def _name(self, text: str) -> str:
        words = [match.span() for match in WORD.finditer(text)]
        made, position = [], 0
        for place, (start, end) in enumerate(words):
            word = text[start:end]
            made += [text[position:start], self._word(word, is_last=place > 0 and place == len(words) - 1)]
            position = end
        rest = re.sub(r"\d", lambda m: str((self.number("name", text) >> m.start() % 50) % 10), text[position:])
        return "".join(made) + rest

    def _word(self, word: str, is_last: bool) -> str:
        lower = plain(word)
        if lower in self.lexicon.particles:
            return word
        if len(lower) == 1:                   # an initial: of whom it stands for, if that is known
            whole = next((part for part in self.parts if part.startswith(lower)), None)
            made = self._word(self.parts[whole], is_last)[0] if whole else "ABCDEGHJKLMNPRSTV"[self.number("initial", word) % 17]
            return made.lower() if word.islower() else made
        stem, suffix = self._stem(lower, word)
        key = ("name", stem)
        if key not in self.given:
            self.given[key] = self._draw(stem, is_last)
        made = self.given[key] + suffix
        return made.lower() if word.islower() else made.upper() if word.isupper() and len(word) > 1 else made

    def _stem(self, lower: str, word: str) -> tuple[str, str]:
        """(the known name that a word is a form of, its ending): "Annas" → ("anna", "s")."""
        if lower in self.parts:
            return lower, ""
        for part in sorted(self.parts, key=len, reverse=True):
            if len(part) >= 3 and lower.startswith(part) and 0 < len(lower) - len(part) <= 4:
                return part, word[len(word) - (len(lower) - len(part)):]
        return lower, ""

    def _draw(self, stem: str, is_last: bool) -> str:
        flags = self.lexicon.flags(stem)
        first, last = people_of(self.locale)
        names = last if (is_last and not flags & FIRST) or (flags & LAST and not flags & FIRST) or (is_last and flags & LAST) else first
        number = self.number("name", stem)
        for step in range(len(names)):
            made = names[(number + step * 7919) % len(names)]
            form = plain(made)
            if form not in self.used and form not in self.taken and not self.lexicon.flags(made.casefold()) & COMMON:
                self.used.add(form)
                return made
        return names[number % len(names)]

    # Everything else.

    def _email(self, text: str) -> str:
        number = self.number("email", text)
        first, last = people_of(self.locale)
        pick = [next((name for step in range(9) if (name := re.sub(r"[^a-z]", "", plain(names[((number >> shift) + step) % len(names)]))) and name not in self.taken), "kim") for names, shift in ((first, 0), (last, 16))]
        domains = reserved()["mail_domains"]
        local = f"{pick[0]}.{pick[1]}{number % 90 + 10}"
        return f"{local}@{domains[number % len(domains)]}" if "@" in text or " " in text or "(" in text or "&" in text or "%" in text or "\\" in text else local

    def _phone(self, text: str) -> str:
        number, digits = self.number("phone", text), re.sub(r"\D", "", text)
        is_abroad = text.lstrip(" (").startswith("+") or digits.startswith("00")
        country = self._country(digits) if is_abroad else self.market
        ranges = reserved()["phones"].get(country)
        for step in range(1000):
            if ranges:
                form = ranges[(number + step) % len(ranges)][0 if is_abroad else 1]
                made = _filled(form, number + step)
                made = made if re.search(r"\d\D+\d", text.lstrip("+")) else re.sub(r"[^\d+]", "", made)
            else:
                code = re.match(r"\D*(?:00)?(?:" + str(phonenumbers.country_code_for_region(country) if country else "") + ")?" if is_abroad else r"\D*", text).end()
                made = text[:code] + _redrawn(text[code:], number + step, first="0000")
            if _normal(made) != _normal(text) and (ranges or not _is_valid_phone(made, country)):
                return made
        raise AssertionError("a numbering plan that allows numbers of zeros")

    @staticmethod
    def _country(digits: str) -> str | None:
        try:
            return phonenumbers.region_code_for_number(phonenumbers.parse("+" + digits.removeprefix("00"))) or phonenumbers.region_code_for_country_code(phonenumbers.parse("+" + digits.removeprefix("00")).country_code)
        except phonenumbers.NumberParseException:
            return None

    def _address(self, text: str) -> str:
        number, names = self.number("address", text), streets(self.language)
        if not any(c.isalpha() for c in text):            # a house number or a post code alone
            return _redrawn(text, number)
        street, house = names[number % len(names)], number // len(names) % 99 + 1
        return f"{house} {street}" if re.match(r"\d", text) else f"{street} {house}" if re.search(r"\d", text) else street

    def _iban(self, text: str) -> str:
        match = re.match(r"\W*([A-Za-z]{2})(\W*)\d\W*\d", text)
        if match is None or match.group(1).upper() not in IBAN_LENGTHS:
            return _redrawn(text, self.number("iban", text))
        number = self.number("iban", text)
        body = re.sub("[A-Za-z]", "X", _redrawn(text[match.end():], number))
        made = match.group(1) + match.group(2) + reserved()["iban_check"] + body
        return _next_last_digit(made) if iban.is_valid(made) else made

    def _card(self, text: str) -> str:
        made = _redrawn(text, self.number("card", text), first=re.search(r"\d|$", text).group())
        while luhn.is_valid(re.sub(r"\D", "", made)) or _normal(made) == _normal(text):
            made = _next_last_digit(made)
        return made

    def _national_id(self, text: str) -> str:
        if re.fullmatch(r"[A-Za-z]{2}(?: ?\d\d){3} ?[A-Da-d]", text):
            text = (reserved()["nino"] if text[0].isupper() else reserved()["nino"].lower()) + text[2:]
        number = self.number("national_id", text)
        for step in range(1000):
            made = _redrawn(text, number + step)
            if is_no_id(re.sub(r"\D", "", made), self.market) and not (len(re.sub(r"\D", "", made)) > 11 and luhn.is_valid(re.sub(r"\D", "", made))) and not _has_an_ids_shape(made) and not _is_valid_phone(made, self.market):
                return made
        return re.sub(r"\d", "0", text)

    def _account(self, text: str) -> str:
        return self._national_id(text)

    def _document(self, text: str) -> str:
        return re.sub("[A-Za-z]", lambda m: "X" if m.group().isupper() else "x", self._national_id(text))

    def _secret(self, text: str) -> str:
        return "*" * max(4, min(len(text), 12))

    def _number(self, text: str) -> str:
        return re.sub(r"[^\W_]", "0", text)

    def _url(self, text: str) -> str:
        scheme = re.match(r"https?://", text, re.IGNORECASE)
        return f"{scheme.group().lower() if scheme else ''}{reserved()['host']}/{self.number('url', text) % 10**6:06d}"

    def _ip(self, text: str) -> str:
        network = ipaddress.ip_network(reserved()["ipv6" if ":" in text else "ipv4"])
        return str(network[1 + self.number("ip", text) % min(254, network.num_addresses - 2)])


def _is_valid_phone(text: str, country: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, country))
    except phonenumbers.NumberParseException:
        return False


_separators = re.compile(r"[\s()./_-]")


def _normal(text: str) -> str:
    return _separators.sub("", text).casefold()


def _stream(number: int):
    state = hashlib.sha256(str(number).encode()).digest()
    while True:
        yield from (byte % 10 for byte in state if byte < 250)
        state = hashlib.sha256(state).digest()


def _filled(form: str, number: int) -> str:
    digits = _stream(number)
    return re.sub("#", lambda _: str(next(digits)), form)


def _redrawn(text: str, number: int, first: str = "") -> str:
    """The same shape with other digits: replaced one by one, everything else kept."""
    digits, begin = _stream(number), iter(first)
    return re.sub(r"\d", lambda _: next(begin, None) or str(next(digits)), text)


def _next_last_digit(text: str) -> str:
    place = max(i for i, c in enumerate(text) if c.isdigit())
    return text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1:]
