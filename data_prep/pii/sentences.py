"""Turns of made-up support chats in many languages, with people's names and without: what the tagger of names learns from.

Most are out of `turns.yaml`; the others are put together from the phrases that announce names and from ordinary words.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator

from data_prep.pii.lexicon import frequencies, listed_names, phrases, shipped_words, turns

NATURAL = 0.7                # of them out of turns.yaml
NEAREST = {"no": "no_NO", "ca": "es_ES", "eu": "es_ES", "gl": "es_ES", "mt": "it_IT", "sq": "it_IT", "sr": "hr_HR", "mk": "bg_BG", "ar": "ar_AA"}


def _names_of(language: str, hold_out: bool) -> tuple[list[str], list[str]]:
    first, last = listed_names(hold_out)
    mine = [code for code in first if code.split("_")[0] == language and first[code] and last[code]] or [NEAREST.get(language, "en_GB")]
    return sorted(n for code in mine for n in first[code]), sorted(n for code in mine for n in last[code])


def _misspelt(word: str, rng: random.Random) -> str:
    place = rng.randrange(len(word) - 1)
    return rng.choice([word[:place] + word[place + 1:], word[:place] + word[place + 1] + word[place] + word[place + 2:], word[:place] + word[place] + word[place:]])


def _typed(text: str, names: list[str], rng: random.Random) -> tuple[str, list[str]]:
    """As people type: often all in small letters, now and then in capitals, with a word misspelt."""
    roll = rng.random()
    words = text.split(" ")
    place = rng.randrange(len(words))
    if rng.random() < 0.15 and len(words[place]) > 4 and words[place].isalpha() and not any(words[place] in name for name in names):
        text = " ".join([*words[:place], _misspelt(words[place], rng), *words[place + 1:]])
    if roll < 0.35:
        return text.lower(), [name.lower() for name in names]
    if roll < 0.37:
        return text.upper(), [name.upper() for name in names]
    return text, names


def sentences(rng: random.Random, count: int, hold_out: bool = False, among: Collection[str] | None = None) -> Iterator[tuple[str, str, list[str], bool, bool]]:
    """Yield (language, text, names in it, said by an agent, asked for a name). among: languages, by default all.

    A third holds no name but ordinary words, misspelt ones, places and brands, so that what is merely unknown is no name.
    """
    from babel import Locale

    tables = phrases()
    languages = sorted(tables if among is None else tables.keys() & among) or ["en"]
    large = [language for language in ("en", "de", "fr", "es", "it", "nl", "sv", "pl", "pt", "da", "no", "fi") if language in languages] or languages
    people = {language: _names_of(language, hold_out) for language in languages}
    names = {part.casefold() for lists in listed_names() for listed in lists.values() for name in listed for part in name.split()}
    words = {language: [*sorted(common) * 4, *sorted(word for word, zipf in frequencies(language).items() if zipf >= 3.2 and word.isalpha() and len(word) > 2 and word not in names)]
             for language, (common, _) in shipped_words().items() if language in languages}
    places = sorted({zone["city"] for zone in Locale.parse("en").time_zones.values() if "city" in zone} | {n for n in Locale.parse("en").territories.values() if " " not in n})
    brands = ["".join(parts) for parts in zip(rng.choices(["Nor", "Vel", "Tin", "Cas", "Lum", "Oak", "Fjo", "Mar", "Pin", "Zal", "Kla", "Bri", "Hum", "Tec", "Sol", "Ald", "Bex", "Dro"], k=300), rng.choices(["dhus", "ora", "dra", "sia", "o", "land", "by", "sol", "crest", "ando", "rna", "ndle", "ax", "ify", "mart", "ora", "on", "ica"], k=300), strict=True)]
    for _ in range(count):
        language = rng.choice(large if rng.random() < 0.6 else languages)
        if rng.random() < NATURAL and (natural := said(rng, language, people[language])) is not None:
            text, named, by_agent = natural
            yield language, *_typed(text, named, rng), by_agent, False
            continue
        table, (first, last) = tables[language], people[language]

        def some(kind: str, table=table) -> str:
            return rng.choice(table.get(kind) or tables["en"][kind])

        def prose(low: int, high: int, language=language) -> str:
            said = [rng.choice(words[language]) for _ in range(rng.randint(low, high))]
            if said and rng.random() < 0.25:
                place = rng.randrange(len(said))
                odd = rng.random()
                said[place] = rng.choice(places) if odd < 0.2 else rng.choice(brands) if odd < 0.35 else _misspelt(said[place], rng) if len(said[place]) > 3 else said[place]
            if language == "de":
                said = [word.capitalize() if rng.random() < 0.35 else word for word in said]
            text = " ".join(said)
            return text[:1].upper() + text[1:] if rng.random() < 0.5 else text

        name = rng.choice([rng.choice(first)] * 3 + [f"{rng.choice(first)} {rng.choice(last)}"] * 2 + [rng.choice(last)])
        draw, by_agent, asked = rng.random(), rng.random() < 0.4, False
        people_named = [name]
        if draw < 0.3:
            text, people_named = f"{prose(2, 9)}{rng.choice(['.', '?', '!', ''])} {prose(0, 4)}".strip(), []
        elif draw < 0.34:
            text, people_named = rng.choice([some("greets"), f"{some('greets')} {prose(1, 4)}", f"{some('thanks')} {prose(0, 3)}", f"{some('introduces')} {prose(1, 4)}", prose(1, 1)]), []
        elif draw < 0.46:
            text = f"{some('greets').capitalize()} {rng.choice(['', '', '', some('titles') + ' ', prose(1, 2).lower() + ' ', prose(1, 2).lower() + ', '])}{name}{rng.choice(['', ',', '!', '.'])} {prose(0, 6)}"
        elif draw < 0.52:
            text, asked = name, rng.random() < 0.5
        elif draw < 0.60:
            text = f"{rng.choice(['', prose(1, 3) + ' '])}{some('introduces')} {name}{rng.choice(['', '.', ' ' + prose(1, 4)])}"
        elif draw < 0.68:
            text = f"{prose(0, 3)} {some('speaks_to')} {name} {prose(0, 4)}"
        elif draw < 0.74:
            text = rng.choice([f"{some('thanks')} {name}", f"{some('thanks')}, {name}. {prose(1, 5)}", f"{name}, {some('thanks')}", f"{name}, {prose(2, 5)}", f"{prose(2, 5)}, {name}?"])
        elif draw < 0.80:
            text = f"{prose(0, 5)}\n{some('signs_off').capitalize()}{rng.choice([',', ''])}{rng.choice([chr(10), ' '])}{name}"
        elif draw < 0.86:
            text = f"{prose(0, 3)} {some('relatives')} {name} {prose(1, 4)}"
        elif draw < 0.90:
            text = f"{name} {some('follows')}" if table.get("follows") else f"{some('titles').capitalize()} {name} {prose(0, 4)}"
        else:
            text = f"{prose(1, 5)} {name} {prose(0, 5)}"
        yield language, *_typed(text.strip(), people_named, rng), by_agent, asked


def said(rng: random.Random, language: str, names: tuple[list[str], list[str]]) -> tuple[str, list[str], bool] | None:
    """A natural turn of a support chat: (text, names in it, said by an agent); None where the language has none."""
    mine = turns()["languages"].get(language)
    if mine is None:
        return None
    by_agent, is_named = rng.random() < 0.45, rng.random() < 0.4
    template = rng.choice(mine[f"{'agent' if by_agent else 'customer'}_named" if is_named else f"free_{'agent' if by_agent else 'customer'}"])
    first, last = rng.choice(names[0]), rng.choice(names[1])
    fillers = turns()["fillers"].get(language, {})
    people = {"first": first, "last": last, "full": f"{first} {last}", "name": rng.choice([first, f"{first} {last}"])}
    used = {key: people[key] for key in people if "{" + key + "}" in template}
    text = template.format(**used, **{key: rng.choice(values) for key, values in fillers.items()})
    return text, list(used.values()), by_agent
