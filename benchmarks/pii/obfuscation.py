"""Ways in which people, keyboards and software disguise a value."""

from __future__ import annotations

import random

from benchmarks.pii.text import load
from benchmarks.pii.values import chunks

INVISIBLE = ("\u200b", "\u200c", "\u200d", "\u00ad", "\ufeff", "\u2060", "\u200e", "\u200f")
DIGIT_SETS = {"fullwidth": "０１２３４５６７８９", "arabic-indic": "٠١٢٣٤٥٦٧٨٩", "persian": "۰۱۲۳۴۵۶۷۸۹", "devanagari": "०१२३४५६७८९", "superscript": "⁰¹²³⁴⁵⁶⁷⁸⁹",
              "bold": "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗", "keycap": [f"{d}\ufe0f\u20e3" for d in range(10)]}


def other_digits(text: str, script: str) -> str:
    """ASCII digits written in another script."""
    return "".join(DIGIT_SETS[script][int(c)] if c in "0123456789" else c for c in text)


def sprinkle(text: str, rng: random.Random, characters: tuple[str, ...] = INVISIBLE, times: int = 3) -> str:
    """Invisible characters somewhere inside."""
    for _ in range(times):
        at = rng.randrange(1, len(text))
        text = text[:at] + rng.choice(characters) + text[at:]
    return text


def homoglyphs(text: str, rng: random.Random, times: int = 2) -> str:
    """Some Latin letters replaced with Cyrillic or Greek twins."""
    twins = load("adversarial")["homoglyphs"]
    places = [i for i, c in enumerate(text) if c in twins]
    chosen = set(rng.sample(places, min(times, len(places))))
    return "".join(twins[c] if i in chosen else c for i, c in enumerate(text))


def spell(number: str, language: str, rng: random.Random, style: str = "digits") -> str:
    """Digits in words: one by one, in pairs (einundzwanzig, quatre-vingt-dix), or with double and triple."""
    words = load("adversarial")
    ones = words["digits"][language]
    if style == "pairs" and language in words["tens"]:
        return " ".join(_pair(pair, language) for pair in chunks(number, 2))
    out, i = [], 0
    while i < len(number):
        run = len(number[i:]) - len(number[i:].lstrip(number[i]))
        repeat = words["repeats"].get(language, {}).get(min(run, 3)) if style == "repeats" else None
        out.append(f"{repeat} {ones[int(number[i])]}" if repeat else ones[int(number[i])])
        i += min(run, 3) if repeat else 1
    return rng.choice([" ", " ", ", "]).join(out)


def _pair(pair: str, language: str) -> str:
    """Two digits as one number; with a leading zero, or alone, digit by digit."""
    words = load("adversarial")
    ones, ten, one = words["digits"][language], int(pair[0]), int(pair[-1])
    if len(pair) == 1 or ten == 0:
        return " ".join(ones[int(d)] for d in pair)
    if ten == 1:
        return words["teens"][language][one]
    tens = words["tens"][language][ten - 2]
    if language == "fr" and ten in (7, 9):
        return f"{tens}{' et ' if (ten, one) == (7, 1) else '-'}{words['teens']['fr'][one]}"
    if one == 0:
        return tens + ("s" if language == "fr" and ten == 8 else "")
    if language == "de":
        return f"{'ein' if one == 1 else ones[one]}und{tens}"
    if language == "nl":
        return f"{ones[one]}{'ën' if one in (2, 3) else 'en'}{tens}"
    if language == "es":
        return f"{tens} y {ones[one]}"
    if language == "fr":
        return f"{tens} et un" if one == 1 and ten < 8 else f"{tens}-{ones[one]}"
    return tens + ("-" if language == "en" else "") + ones[one]


def email_words(address: str, at: str, dot: str) -> str:
    """anna.berg@mail.se as anna punkt berg snabel-a mail punkt se."""
    return address.replace(".", f" {dot} ").replace("@", f" {at} ")


def typo(text: str, rng: random.Random) -> str:
    """One digit replaced with another, none of the first two."""
    places = [i for i, c in enumerate(text) if c.isdigit()][2:]
    at = rng.choice(places)
    return text[:at] + rng.choice([d for d in "0123456789" if d != text[at]]) + text[at + 1:]
