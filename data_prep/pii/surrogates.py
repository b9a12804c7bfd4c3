"""Stand-ins for personal data: realistic, the same for the same entity in a conversation, never anybody's own.

Identifiers come only from ranges reserved for fiction, or carry a deliberately wrong checksum where no such range
exists, so that the leak check can be closed-world: a valid identifier outside these is a leak.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
from pathlib import Path

import yaml
from stdnum import iban, luhn


@functools.cache
def lists() -> dict:
    return yaml.safe_load((Path(__file__).parent / "surrogates.yaml").read_text(encoding="utf-8"))


class Surrogates:
    """The stand-ins of one conversation, drawn by an HMAC of key, conversation and entity (RFC 2104, SHA-256).

    name_forms: the known surface forms of people's names, so that "Anna", "Karlsson" and "Anna Karlsson" stay one person.
    """

    def __init__(self, key: bytes, conversation_id: str, locale: str, full_names: list[str]):
        self.key, self.conversation_id = key, conversation_id
        self.taken = {part.casefold() for name in full_names for part in name.split()}    # nobody is renamed to a real name
        self.lists = lists()["languages"].get(locale.split("-")[0], lists()["languages"]["en"])
        self.given: dict[tuple[str, str], str] = {}
        self.people = {name: self._person(name) for name in full_names}

    def of(self, kind: str, text: str) -> str:
        """The surrogate of one span; upper and lower case follow the original."""
        key = (kind, _normal(text))
        if key not in self.given:
            self.given[key] = getattr(self, f"_{kind}")(text)
        surrogate = self.given[key]
        if kind in ("name", "address"):
            return surrogate.lower() if text.islower() else surrogate.upper() if text.isupper() and len(text) > 3 else surrogate
        return surrogate

    def _number(self, kind: str, text: str) -> int:
        message = f"{self.conversation_id}\x00{kind}\x00{_normal(text)}".encode()
        return int.from_bytes(hmac.new(self.key, message, hashlib.sha256).digest()[:8], "big")

    def _person(self, name: str) -> tuple[str, str]:
        number = self._number("name", name)
        first = [n for n in self.lists["first"] if n.casefold() not in self.taken]
        last = [n for n in self.lists["last"] if n.casefold() not in self.taken]
        return first[number % len(first)], last[number // len(first) % len(last)]

    def _name(self, text: str) -> str:
        for name, (first, last) in self.people.items():
            parts = [part.lower() for part in name.split()]
            if text.lower() == name.lower():
                return f"{first} {last}" if len(parts) > 1 else first
            if text.lower() in parts:
                return last if len(parts) > 1 and text.lower() == parts[-1] else first
        return self._person(text)[0]

    def _email(self, text: str) -> str:
        number = self._number("email", text)
        first, last = self._person(text)
        plain = re.sub(r"[^a-z.]", "", f"{first}.{last}".lower())
        return f"{plain}{number % 90 + 10}@{lists()['mail_domains'][number % len(lists()['mail_domains'])]}"

    def _phone(self, text: str) -> str:
        number = self._number("phone", text)
        while True:
            pattern = self.lists["phones"][number % len(self.lists["phones"])]
            digits = iter(str(number * 7919 + 10**30)[::-1])
            surrogate = re.sub("#", lambda _, digits=digits: next(digits), pattern)
            if _normal(surrogate) != _normal(text):      # a made-up archive may use the reserved numbers itself
                return surrogate
            number += 1

    def _address(self, text: str) -> str:
        number = self._number("address", text)
        streets = self.lists["streets"]
        return f"{streets[number % len(streets)]} {number // len(streets) % 99 + 1}"

    def _iban(self, text: str) -> str:
        # Check digits 00 are never issued (ISO 13616: 02 to 98); where they happen to satisfy the checksum, a digit moves on.
        body = re.sub("[A-Za-z]", "X", _reshuffled(text[4:], self._number("iban", text)))
        surrogate = text[:2] + "00" + body
        return _bump_last_digit(surrogate) if iban.is_valid(surrogate) else surrogate

    def _card(self, text: str) -> str:
        surrogate = _reshuffled(text, self._number("card", text))
        return surrogate if not luhn.is_valid(re.sub(r"\D", "", surrogate)) else _bump_last_digit(surrogate)

    def _national_id(self, text: str) -> str:
        return _reshuffled(text, self._number("national_id", text), first="0000")


def _normal(text: str) -> str:
    return re.sub(r"[\s().-]", "", text).casefold()


def _reshuffled(text: str, number: int, first: str = "") -> str:
    """The same shape with other digits: digits replaced one by one, everything else kept."""
    digits = iter(first + str(number * 7919 + 10**30)[1:])
    return re.sub(r"\d", lambda _: next(digits), text)


def _bump_last_digit(text: str) -> str:
    place = max(i for i, c in enumerate(text) if c.isdigit())
    return text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1:]
