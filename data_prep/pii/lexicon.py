"""What the name detector knows about words: names, ordinary words, the phrases around names, and a trained tagger.

Names come from Faker's lists of some 80 countries, ordinary words from `common_words.yaml` and Faker's texts, and, once `fit` has seen an archive, from the archive itself. Nothing here is about a particular customer:
what `fit` adds occurred in the conversations of at least `MIN_CUSTOMERS` different ones.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import pkgutil
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from data_prep.pii.announce import announcing, data, kind_of_word

COMMON, FIRST, LAST, ORDINARY, MISSPELT = 1, 2, 4, 8, 16        # what a word is; a word can be several. ORDINARY: a dictionary's; MISSPELT: as good as a frequent word
CUES = ("introduces", "speaks_to", "greets", "thanks", "signs_off", "titles", "relatives", "asks", "follows", "moves")
# Written without capitals or with blanks inside in Faker's lists, or no names of persons at all.
NO_LISTS = {"ja_JP", "ko_KR", "zh_CN", "zh_TW", "th_TH"}


def language_of(locale: str) -> str:
    """The language of a locale, as the lists name it: "sv-SE" → "sv", "nb-NO" → "no", "pt_BR" → "pt"."""
    code = locale.replace("_", "-").split("-")[0].lower()
    return {"nb": "no", "nn": "no", "iw": "he"}.get(code, code)


def plain(word: str) -> str:
    """A word without diacritics, in small letters: "Åsa" → "asa", "Łukasz" → "lukasz", "Sørensen" → "sorensen"."""
    if word.isascii():
        return word.casefold()
    return _marks.sub("", unicodedata.normalize("NFKD", word.casefold())).translate(_STROKES)


_marks = re.compile("[\u0300-\u036f]+")
_STROKES = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})


@dataclass
class Lexicon:
    """What is known of the words of one language (`own`: word → Zipf frequency) by one artefact.

    words: word in small letters → COMMON | FIRST | LAST. native: names that are usual where the language is spoken. ordinary: everyday words of the language, both: those of them that
    people are called as well. cues: first word → [(further words, kind of cue)]. slots: hashes of
    agent sentences whose gap holds a name. tagger: a pycrfsuite.Tagger or None. company: words that are never a name.
    """

    words: dict[str, int]
    cues: dict[str, list[tuple[tuple[str, ...], str]]]
    particles: frozenset[str]
    language: str = "en"
    native: frozenset[str] = frozenset()
    ordinary: frozenset[str] = frozenset()
    both: frozenset[str] = frozenset()
    slots: frozenset[str] = frozenset()
    tagger: object | None = None
    company: frozenset[str] = frozenset()
    threshold: float = 0.14         # how sure the tagger must be that a word nobody knows is a name …
    of_a_word: float = 0.6          # … that a dictionary's word is one
    of_a_slip: float = 0.5          # … that what may be a misspelt word is one
    cache: dict[str, int] = field(default_factory=dict)

    def flags(self, word: str) -> int:
        """What a word in small letters is; 0 where nobody knows it."""
        known = self.cache.get(word)
        if known is None:
            known = COMMON if word in self.company else self._flags(word)
            if len(self.cache) < 1 << 18:          # an archive of any length has words of any number
                self.cache[word] = known
        return known

    def _flags(self, word: str) -> int:
        if len(word) > 40:          # nobody is called that
            return COMMON
        known = self.words.get(word, 0)
        if not known and not word.isascii():
            known = self.words.get(plain(word), 0)
        if known & COMMON or word in self.ordinary:
            return known | COMMON if word not in self.ordinary or word in self.both else COMMON
        if word in self.both:
            return known | COMMON | FIRST
        if not known and kind_of_word(word):
            return COMMON
        zipf, witnesses = profile(word, self.language)
        is_of_one_language = zipf >= 3 and witnesses <= 1          # names travel, words do not
        in_english = frequencies("en").get(word, 0) if is_word(word, "en") else 0          # whose words travel like names
        if known and (in_english >= 4.6 or (zipf >= 5 and is_word(word, self.language))) and not (known & FIRST and word in self.native):          # "days" is somebody's surname, "dias" another's
            return known | COMMON
        if not known and in_english >= 4.3:
            return COMMON
        is_ordinary = in_english or is_word(word, self.language)
        if known:
            return known | (COMMON if is_of_one_language and zipf >= 4.2 else ORDINARY) if is_ordinary else known
        if "-" in word or "'" in word or "’" in word:          # Anne-Marie, l'étiquette
            parts = [self.flags(part) if len(part) > 2 else COMMON for part in re.split("['’-]", word) if part]
            both = functools.reduce(lambda one, other: one | other, parts, 0) if parts and all(parts) else 0
            return both & ~COMMON if both & (FIRST | LAST) else COMMON if both & COMMON else both
        if is_ordinary:
            return ORDINARY
        return MISSPELT if len(word) > 4 and not is_of_one_language and is_misspelt(word, self.language) else 0


WITNESSES = ("en", "de", "fr", "es", "pl", "fi", "hu", "tr")
NEAR_LANGUAGES = {"no": "nb", "hr": "sh", "sr": "sh", "gl": "pt", "eu": "es", "et": "fi", "ga": "en", "mt": "it", "sq": "en"}


@functools.cache
def _bins(language: str) -> list[list[str]]:
    """Words by Zipf frequency (log10 of occurrences in a billion words; van Heuven et al. 2014) in steps of .01 down from 9; wordfreq's small list."""
    import wordfreq

    try:
        return wordfreq.get_frequency_list(NEAR_LANGUAGES.get(language, language), "small")
    except LookupError:
        return []


@functools.cache
def frequencies(language: str) -> dict[str, float]:
    """Word → Zipf frequency."""
    table: dict[str, float] = {}
    for place, words in enumerate(_bins(language)):
        table.update(dict.fromkeys(words, 9 - place / 100))
    return table


@functools.cache
def frequent(language: str) -> frozenset[str]:
    """The words with a Zipf frequency of 3 and more."""
    return frozenset().union(*_bins(language)[:601])


@functools.cache
def dictionary(language: str) -> Mapping[str, str]:
    """Form → lemma, capitals as in the language, by simplemma; empty where it has none. Polish takes 1.5 s and 50 MB, English a tenth."""
    from simplemma.strategies.dictionaries.stream_dictionary_factory import StreamMap

    try:
        return StreamMap({"no": "nb", "hr": "hbs", "sr": "hbs"}.get(language, language))
    except ValueError:
        return {}


def is_word(word: str, language: str) -> bool:
    """Whether a word in small letters is an everyday one: a dictionary's (German: a noun's), or, without one, frequent in this language and in no other."""
    forms = dictionary(language)
    if not forms:
        zipf, witnesses = profile(word, language)
        return zipf >= 3 and witnesses <= 1
    if forms.get(word, "X")[0].islower():
        return True
    noun = word.capitalize()
    lemma = forms.get(noun) if language == "de" else None
    return lemma is not None and ((lemma != noun and not noun.endswith("s")) or any(forms.get(noun + ending) == noun for ending in ("en", "n", "e", "er", "es", "nen")))


@functools.cache
def _shortened(language: str) -> frozenset[str]:
    """Frequent words with one letter left out."""
    return frozenset(form for code in dict.fromkeys((language, "en")) for word, zipf in frequencies(code).items() if zipf >= 4.3 and len(word) > 4 and is_word(word, code) for form in (word, *_without_one(word)))


def _without_one(word: str) -> list[str]:
    return [word[:place] + word[place + 1:] for place in range(len(word))]


def is_misspelt(word: str, language: str) -> bool:
    """Whether one wrong letter makes an unknown word out of a frequent one (deletions on both sides; Garbe's SymSpell)."""
    shortened = _shortened(language)
    return word in shortened or any(form in shortened for form in _without_one(word))


def profile(word: str, language: str) -> tuple[float, int]:
    """(Zipf frequency in the language or in English, in how many other languages it is no rare word).

    Names travel, words do not: "lukas" is known in eight languages, "Lieferung" in one.
    """
    zipf = frequencies(language).get(word, 0.0) or (frequencies("en").get(word, 0.0) if language != "en" else 0.0)
    return zipf, sum(word in frequent(other) for other in WITNESSES if other != language)


def is_held_out(name: str) -> bool:
    """One name in five, by its hash: kept from everything that is built when recall is measured."""
    return int(hashlib.sha256(name.casefold().encode()).hexdigest(), 16) % 5 == 0


@functools.cache
def listed_names(hold_out: bool = False) -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    """({locale: first names}, {locale: last names}) of Faker's lists; hold_out leaves every fifth name away."""
    import faker.providers.person as person

    first: dict[str, frozenset[str]] = {}
    last: dict[str, frozenset[str]] = {}
    for module in pkgutil.iter_modules(person.__path__):
        if module.name in NO_LISTS:
            continue
        provider = vars(importlib.import_module(f"{person.__name__}.{module.name}").Provider)
        for into, key in ((first, "first_name"), (last, "last_name")):
            names = {str(name).strip() for attribute, values in provider.items() if key in attribute and not callable(values) and not isinstance(values, property | staticmethod | classmethod)
                     for name in values}
            into[module.name] = frozenset(n for n in names if len(n) > 1 and not (hold_out and is_held_out(n)))
    return first, last


@functools.cache
def native_names(language: str, hold_out: bool = False) -> frozenset[str]:
    """Names usual where a language is spoken, and first names that four countries or more share."""
    first, last = listed_names(hold_out)
    mine: set[str] = set()
    for lists in (first, last):
        for locale, names in lists.items():
            if locale.split("_")[0] == language:
                mine |= {part for name in names for part in name.casefold().split()}
    return frozenset(form for word in mine | _wide_names(hold_out) for form in (word, plain(word)))


@functools.cache
def _wide_names(hold_out: bool) -> set[str]:
    counted = Counter(name.casefold() for names in listed_names(hold_out)[0].values() for name in names)
    return {name for name, count in counted.items() if count >= 4}


def phrases() -> dict[str, dict[str, list[str]]]:
    """names.yaml: language → kind of cue → phrases."""
    return data("names.yaml")["languages"]


def turns() -> dict:
    """turns.yaml: what people write in support chats, with slots for names and things."""
    return data("turns.yaml")


@functools.cache
def shipped_words() -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """language → (ordinary words, ordinary words that are names as well)."""
    return {language: (frozenset(row["words"].casefold().split()), frozenset(row.get("also_names", "").casefold().split())) for language, row in data("common_words.yaml")["languages"].items()}


@functools.cache
def everyday_words(language: str) -> tuple[frozenset[str], frozenset[str]]:
    """(ordinary words of a language and of English, those of them that people are called as well), with and without diacritics."""
    import faker.providers.lorem as lorem

    certain: set[str] = set()
    both: set[str] = set()
    modules = [module.name for module in pkgutil.iter_modules(lorem.__path__)]
    for code in dict.fromkeys((language, "en")):
        words, also_names = shipped_words().get(code, ((), ()))
        certain |= words
        both |= also_names
        for name in modules:          # mock Latin is no language of ours
            if name.split("_")[0] == code and name not in ("en_PH", "he_IL", *NO_LISTS):
                certain |= {word.casefold() for word in importlib.import_module(f"{lorem.__name__}.{name}").Provider.word_list}
        certain |= {word for kind, listed in phrases().get(code, {}).items() if not kind.startswith("streets") for phrase in listed for word in phrase.split() if word.isalpha()}
    from babel import Locale
    from babel.core import get_global

    listed = build_words()
    nobody = {brand for brands in data("brands.yaml").values() for brand in brands.split()}
    places = {zone.split("/")[-1].casefold() for zone in get_global("zone_territories")}
    for code in dict.fromkeys((language, "en")):
        nobody |= {word for kind in ("brand", "city") for name in turns()["fillers"].get(code, {}).get(kind, []) for word in name.casefold().split()}
        where = Locale.parse(code)          # CLDR's languages, countries and cities
        places |= {place.casefold() for place in (*where.languages.values(), *where.territories.values(), *(zone.get("city", "") for zone in where.time_zones.values())) if place.isalpha()}
    words, begins, cue_phrases = announcing()
    certain |= words.keys() | {word for phrases_of in cue_phrases.values() for phrase, _ in phrases_of for word in phrase.split()} | {word for word in begins if len(word) > 3}
    nobody |= {place for place in places if not listed.get(place, 0) & FIRST}          # Adelaide is rather somebody
    both |= {word for word in nobody - certain if listed.get(word)}          # Bosch is a brand and a name: both; Zalando is nobody
    certain |= {word for word in nobody if not listed.get(word)}
    return tuple(frozenset(form for word in group for form in (word, plain(word))) for group in (certain, both))


@functools.cache
def _listed_words(hold_out: bool) -> dict[str, int]:
    return _flagged(*listed_names(hold_out))


def build_words(hold_out: bool = False, corpus: dict[str, int] | None = None) -> dict[str, int]:
    """Every listed name with its flags, and what an archive uses as ordinary words."""
    return _listed_words(hold_out) | (corpus or {})


def _flagged(first: dict[str, frozenset[str]], last: dict[str, frozenset[str]]) -> dict[str, int]:
    words: dict[str, int] = {}
    for lists, flag in ((first, FIRST), (last, LAST)):
        for names in lists.values():
            for name in names:
                for part in name.casefold().split():
                    for form in (part,) if part.isascii() else (part, plain(part)):
                        if len(form) > 1:
                            words[form] = words.get(form, 0) | flag
    return words


@functools.cache
def build_cues(language: str) -> tuple[dict[str, list[tuple[tuple[str, ...], str]]], frozenset[str]]:
    """(first word of a phrase → [(its further words, kind)], the longest first; particles inside surnames), in a language and in English; in all where we have not got the language."""
    cues: dict[str, set[tuple[tuple[str, ...], str]]] = {}
    particles: set[str] = set()
    for code, table in phrases().items():
        particles |= set(table.get("particles", []))
        for kind in CUES if language not in phrases() or code in (language, "en") else ():
            for phrase in table.get(kind, []):
                words = tuple(_word_pieces(phrase))
                is_foreign = code != language and language in phrases() and len(words) == 1 and kind not in ("greets", "titles") and is_word(words[0], language)          # "im" is no "I'm" in German
                if words and not is_foreign:
                    cues.setdefault(words[0], set()).add((words[1:], kind))
    return {word: sorted(rows, key=lambda row: (-len(row[0]), CUES.index(row[1]))) for word, rows in cues.items()}, frozenset(particles)


def _word_pieces(phrase: str) -> list[str]:
    from data_prep.pii.names import WORD

    return [match.group().casefold() for match in WORD.finditer(phrase)]
