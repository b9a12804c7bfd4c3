"""T5: names that the shop knows, written in every other way."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator

from benchmarks.pii.names import full, person
from benchmarks.pii.text import case, fill, load, mark
from benchmarks.pii.values import email


def plain(text: str) -> str:
    """Without diacritics: å becomes a, ø o, ß ss, ł l."""
    text = text.translate(str.maketrans({"ß": "ss", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "æ": "ae", "Æ": "Ae", "đ": "d", "ı": "i"}))
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def german(text: str) -> str:
    """Umlauts written out, as on a keyboard without them."""
    return text.translate(str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "å": "aa", "ø": "oe", "æ": "ae"}))


def slip(word: str, rng: random.Random) -> str:
    """One typing error: a letter doubled, left out, or two swapped."""
    at = rng.randrange(1, len(word) - 1)
    return rng.choice([word[:at] + word[at] + word[at:], word[:at] + word[at + 1:], word[:at] + word[at + 1] + word[at] + word[at + 2:] if word[at] != word[at + 1] else word[:at] + word[at + 1:]])


VARIANTS = {
    "as known": lambda first, last, rng: rng.choice([f"{first} {last}", first, last]),
    "lower case": lambda first, last, rng: rng.choice([f"{first} {last}", first, last]).lower(),
    "upper case": lambda first, last, rng: rng.choice([f"{first} {last}", first, last]).upper(),
    "no diacritics": lambda first, last, rng: plain(rng.choice([str, german])(f"{first} {last}")),
    "decomposed": lambda first, last, rng: unicodedata.normalize("NFD", f"{first} {last}"),
    "one typo": lambda first, last, rng: rng.choice([f"{slip(first, rng)} {last}", f"{first} {slip(last, rng)}", slip(last, rng)]),
    "initial": lambda first, last, rng: rng.choice([f"{first[0]}. {last}", f"{first} {last[0]}.", f"{first[0]} {last}", f"{first[0]}.{last}"]),
    "reversed": lambda first, last, rng: rng.choice([f"{last}, {first}", f"{last} {first}", f"{last.upper()} {first}"]),
    "run together": lambda first, last, rng: rng.choice([f"{first}{last}", f"{first}-{last}", f"{first}.{last}", f"{first}_{last}", f"{first.lower()}{last.lower()}"]),
    "spaced out": lambda first, last, rng: " ".join(rng.choice([last, first])),
    "with title": lambda first, last, rng: None,
}
TITLES = {"en": ["Mr", "Mrs", "Ms", "Dr"], "de": ["Herr", "Frau", "Dr."], "sv": ["herr", "fru"], "fr": ["M.", "Mme", "Madame"], "nl": ["meneer", "mevrouw", "mw."], "es": ["Sr.", "Sra.", "doña"],
          "pl": ["pan", "pani"], "cs": ["pan", "paní"], "fi": ["herra", "rouva"], "hu": ["dr."]}


def names_known(seed: int = 0, n: int = 40) -> Iterator[dict]:
    """T5: n cases of every way of writing a customer's or agent's name, and every inflected, particle and word-like name once in each carrier."""
    words = load("adversarial")
    for variant, write in VARIANTS.items():
        rng = random.Random(f"{seed}-names_known-{variant}")
        for _ in range(n):
            while True:
                language = rng.choice(list(words["name_carriers"]))
                first, last = person(rng, language)
                if not ((variant in ("one typo", "spaced out") and min(len(first), len(last)) < 5) or (variant in ("no diacritics", "decomposed") and (first + last).isascii())):
                    break
            title = rng.choice(TITLES[language])
            written = mark("name", write(first, last, rng)) if variant != "with title" else f"{title} {mark('name', last)}"
            yield _case(variant, language, rng.choice(words["name_carriers"][language]), written, full(first, last, language), rng)
    rng = random.Random(f"{seed}-names_known-tables")
    for name, form, language, carrier in words["inflected"]:
        for text in (form, form.lower()):
            yield _case("inflected", language, carrier, mark("name", text), name, rng)
    for name in words["particles"]:
        for text in (name, name.lower(), name.split(" ", 1)[1]):
            yield _case("particles and hyphens", "en", rng.choice(words["name_carriers"]["en"]), mark("name", text), name, rng)
    for name, language, *carriers in words["word_names"]:
        for carrier in carriers:
            yield _case("names that are words", language, carrier.replace("<n>", name), "", f"{name} {person(rng, language)[1]}", rng)


def _case(group: str, language: str, carrier: str, written: str, name: str, rng: random.Random) -> dict:
    role, text = ("assistant", carrier[3:]) if carrier.startswith("A: ") else ("user", carrier)
    agent = role == "user" and group == "as known" and rng.random() < 0.3
    market = load("adversarial")["markets"].get(language, "GB")
    return case("names_known", group, language, f"{language}-{market}", [(role, fill(text, rng, {"x": written}))],
                customer={} if agent else {"name": name, "email": email(rng, market)}, agents=[{"name": name}] if agent else [])
