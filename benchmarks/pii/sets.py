"""The held-out sets of the anonymisation stage, written apart from the detectors. Every generator is pure and seeded.

A case is {"set", "group", "language", "locale", "customer", "agents", "messages": [{"role", "content"}],
"spans": [[message, start, end, kind]], "keep": [[message, start, end]]}: no alphanumeric character inside `spans`
may survive, every character inside `keep` must. `leaks` yields pairs instead (see there).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.pii import national, values
from benchmarks.pii.adversarial import adversarial
from benchmarks.pii.conversations import all_languages, kept, leaks, split_over_turns
from benchmarks.pii.known import names_known
from benchmarks.pii.names import full, person
from benchmarks.pii.negatives import hard_negatives
from benchmarks.pii.text import case, fill, load, mark, messy

KINDS = ("card", "iban", "email", "phone", "national_id")
MARKETS = tuple(load("values")["markets"])
WRAPPED = {"angle brackets": "<{}>", "mailto": "mailto:{}", "quotes": '"{}"', "brackets": "({})"}
MAIN = ("en", "de", "fr", "es", "sv", "nl")


def structured(n: int = 200, seed: int = 0) -> Iterator[dict]:
    """T1: n cases for every kind and market (no IBAN in US and CA)."""
    for kind in KINDS:
        for market in MARKETS:
            if kind == "iban" and market in ("US", "CA"):
                continue
            rng = random.Random(f"{seed}-structured-{kind}-{market}")
            for _ in range(n):
                yield _structured(kind, market, rng)


def _structured(kind: str, market: str, rng: random.Random) -> dict:
    """One value in one writing in one carrier, bare in half of the cases (a national number in one of six)."""
    language = rng.choice(load("values")["markets"][market]["languages"])
    words = load("carriers")[language]
    value, style, needs_cue = _written(kind, market, rng)
    bare = (not needs_cue and rng.random() < 0.5) or (kind == "national_id" and rng.random() < 0.17)
    carrier = rng.choice(words[kind]["bare" if bare else "cue"])
    follow = f" {rng.choice(words['follow'])}" if rng.random() < 0.2 and carrier.endswith("<x>") else ""
    word = national.word(market, value, language, rng) if kind == "national_id" else ""
    asked = [("assistant", fill(words[kind]["ask"], rng, {"word": word}))] if carrier == "<x>" or (kind == "national_id" and bare) else []
    text = messy(fill(carrier + follow, rng, {"x": WRAPPED.get(style, "{}").format(mark(kind, value)), "word": word}), rng)
    return case("structured", f"{kind} {market}", language, f"{language}-{market}", [*asked, ("user", text)], style=f"{style}, followed" if follow else style)


def _written(kind: str, market: str, rng: random.Random) -> tuple[str, str, bool]:
    """(as typed, name of the writing, whether nobody could tell without a cue)."""
    if kind == "email":
        address, style = values.email(rng, market), rng.choice(["plain", "plain", "plain", "capitals", *WRAPPED])
        return rng.choice([address.upper(), address.title()]) if style == "capitals" else address, style, False
    if kind == "phone":
        style = rng.choice(values.PHONE_STYLES)
        text = values.write_phone(values.phone(rng, market), style)
        return text, style, (text.isdigit() and not text.startswith("0")) or style == "dotted"
    written = {"card": lambda: values.card_styles(values.card(rng)), "iban": lambda: values.iban_styles(values.iban(rng, market)),
               "national_id": lambda: national.styles(market, national.MAKERS[market](rng))}[kind]()
    style = rng.choice(list(written))
    return written[style], style, kind == "national_id"


def _turn(line: str) -> tuple[str, str]:
    """(role, template) of a line that may begin with A: or C: ."""
    return ("assistant", line[3:]) if line.startswith("A: ") else ("user", line.removeprefix("C: "))


def names_unknown(seed: int = 0, n: int = 60) -> Iterator[dict]:
    """T6: n conversations per language with a name that no metadata knows, each once as written and once all in lower case."""
    words = load("names")
    for language in (key for key in words if key != "weights"):
        rng = random.Random(f"{seed}-names_unknown-{language}")
        for position in rng.choices(list(words["weights"]), list(words["weights"].values()), k=n):
            first, last = person(rng, language)
            slots = {"first": mark("name", first), "last": mark("name", last), "full": mark("name", full(first, last, language))}
            role, line = _turn(rng.choice(words[language][position]))
            messages = [(role, fill(line.replace("<first> <last>", "<full>") if language != "hu" else line, rng, slots))]
            if position == "alone" and rng.random() < 0.8:
                messages.insert(0, ("assistant", rng.choice(words[language]["asked"])))
            for case_name, change in (("cased", str), ("lower", str.lower)):
                yield case("names_unknown", f"{language} {position} {case_name}", language, language, [(role, change(text)) for role, text in messages])


def name_free(seed: int = 0, n: int = 150, others: int = 70) -> Iterator[dict]:
    """T6: distinct turns without anybody's name, n in each of six languages and `others` in each of eleven more; nothing in them may be taken for one."""
    for language, words in load("free").items():
        rng, seen = random.Random(f"{seed}-name_free-{language}"), set()
        while len(seen) < (n if language in MAIN else others):
            role, line = _turn(words["turns"][len(seen) % len(words["turns"])])
            text = messy(fill(line, rng, words), rng)
            if text not in seen:
                seen.add(text)
            elif rng.random() < 0.9:
                continue
            else:       # a short turn has few wordings: take another pattern
                role, line = _turn(rng.choice(words["turns"]))
                text = messy(fill(line, rng, words), rng)
                if text in seen:
                    continue
                seen.add(text)
            yield case("name_free", language, language, language, [(role, text)])


SETS = {"structured": structured, "adversarial": adversarial, "hard_negatives": hard_negatives, "names_known": names_known, "names_unknown": names_unknown, "name_free": name_free,
        "split_over_turns": split_over_turns, "all_languages": all_languages, "kept": kept, "leaks": leaks}
