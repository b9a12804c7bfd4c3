"""People's names for the held-out sets: the fifth of Faker's person lists that no detector may learn from."""

from __future__ import annotations

import random
from functools import cache
from hashlib import sha256
from importlib import import_module

from benchmarks.pii.text import load

FIRST = ("first_names", "first_names_male", "first_names_female")
LAST = ("last_names", "last_names_male", "last_names_female", "male_last_names", "female_last_names", "unisex_last_names")


def is_held_out(name: str) -> bool:
    """Does the name belong to the fifth that only tests may use? Decided by the whole list entry, whatever its case."""
    return int(sha256(name.casefold().encode()).hexdigest(), 16) % 5 == 0


@cache
def entries(locale: str, which: tuple[str, ...]) -> frozenset[str]:
    """Faker's list entries of a locale, weights dropped."""
    provider = import_module(f"faker.providers.person.{locale}").Provider
    lists = [getattr(provider, attribute, None) for attribute in which]
    return frozenset(name for names in lists if names is not None and not isinstance(names, property) for name in names if name != "Doe")


@cache
def held_out(language: str, which: tuple[str, ...]) -> list[str]:
    """The names of a language's locales that tests may use, in a fixed order."""
    return sorted({name for locale in load("names")[language]["locales"] for name in entries(locale, which) if is_held_out(name) and len(name) > 1})


def person(rng: random.Random, language: str) -> tuple[str, str]:
    """A first and a last name; English where the language has no list."""
    language = language if language in load("names") else "en"
    return rng.choice(held_out(language, FIRST)), rng.choice(held_out(language, LAST))


def full(first: str, last: str, language: str) -> str:
    """Both names in the language's order."""
    return f"{last} {first}" if language == "hu" else f"{first} {last}"
