"""What a customer's words say about needing a person: cues of 35 languages (`serve/languages/*.yaml`), and from them probabilities.

A message is read clause by clause. A word for a person (`people`) is a request beside a word of wishing (`wish`) or on its own, and is none where it
is only spoken about (`mention`). Beside these cues, which languages share, stand the message's own words and pieces of words, which are a language's own.
How much each weighs is in `serve/languages/weights.npz`, a logistic regression that `python -m eval.calibrate` fits on the examples beside the lists.
Words are compared without case, accents and punctuation, and names for a person with a slip of the keyboard.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from rapidfuzz import process
from rapidfuzz.distance import OSA

FOLDER = Path(__file__).parent / "languages/"
TOPICS = ("self_harm", "threat", "fraud", "legal", "hardship")         # what must go to a person at once; the first that is found names the handoff
CLASSES = ("none", "ai", "human", *TOPICS)      # what a message is: nothing for a person, a question whether this is one, a request for one, a topic
KINDS = ("people", "wish", "request", "mention", "machine", "ai_question")
WITHOUT_SPACES = {"zh", "ja"}
LONG = 2000           # characters that are read as one: what is longer is no message but something pasted, and its sentences are read one by one
FEW = 3               # words of a message that is hardly more than a name for a person
NEAR = 5              # words between a wish and the person it is for
LETTERS, MARGIN = 8, 4.0      # fewer letters say nothing of a language of the same script; so many nats must another one be likelier than those the model was trained in
_clause = re.compile(r"[.!?;:\n。！？；،؟…]+|,\s|\s[-–—]\s")
_long = re.compile(r"(.)\1{2,}")


@functools.cache
def _folded(char: str) -> str:
    """A character without its accent, where letters of its script are commonly typed without; a space for what is neither letter, mark nor number."""
    if unicodedata.category(char)[0] not in "LMN" or char == "\u02bc":
        return " "
    base = unicodedata.normalize("NFD", char)[0]
    return {"ı": "i", "đ": "d", "ł": "l", "ø": "o", "ς": "σ"}.get(char, base if unicodedata.name(base, "").startswith(("LATIN", "GREEK")) else char)


def normal(text: str) -> str:
    """Words with one space between: no case, accents, punctuation or letters typed three times and more; letters that stand alone in a row are a word ("H U M A N")."""
    text = "".join(map(_folded, unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text.replace("İ", "i")).casefold())))
    text = re.sub(r"\b(?:\w ){3,}\w\b", lambda m: m.group().replace(" ", ""), " ".join(text.split()))
    return _long.sub(r"\1", text)


def clauses(text: str) -> list[str]:
    return [clause for clause in map(normal, _clause.split(text)) if clause]


@dataclass(frozen=True, eq=False)
class Language:
    """One language's lists, compiled. `names`: the words for a person that are long enough to be mistyped."""

    code: str
    cues: dict[str, re.Pattern]
    topics: dict[str, re.Pattern]
    names: tuple[str, ...]
    say: dict[str, str]

    def spans(self, kind: str, clause: str) -> list[tuple[int, int]]:
        """Where a cue stands, as (first word, behind its last word)."""
        return [(clause.count(" ", 0, m.start() + 1), clause.count(" ", 0, m.end()) + 1) for m in self.cues[kind].finditer(clause)]


def _pattern(entries: list[str], code: str) -> re.Pattern:
    """One expression for a list: whole words, with any ending where an entry's word ends in *; anywhere where words have no spaces between."""
    made = {" ".join(re.escape(normal(word)) + (r"[^ ]*" if word.endswith("*") else "") for word in str(entry).split() if normal(word)) for entry in entries}
    either = "|".join(sorted(made - {""}, key=len, reverse=True)) or r"(?!)"
    return re.compile(f"(?:{either})" if code in WITHOUT_SPACES else f"(?<![^ ])(?:{either})(?![^ ])")


@functools.cache
def languages() -> dict[str, Language]:
    """All languages that there are lists of, by code."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        lists, code = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)), path.stem
        names = {normal(str(entry)) for entry in lists["people"]}
        found[code] = Language(code, {kind: _pattern(lists[kind], code) for kind in KINDS}, {topic: _pattern(lists["topics"][topic], code) for topic in TOPICS},
                               tuple(sorted(name for name in names if len(name) >= 5 and " " not in name)), lists["say"])
    return found


@functools.cache
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages([{"nb": "no"}.get(code, code) for code in languages()])
    return identifier


def language_of(text: str, trained: list[str]) -> str:
    """The language a customer writes: one of `trained`, unless another of those that there are lists of is clearly likelier, or the script is none of theirs. Raises: ValueError where `trained` is empty."""
    ranked = {{"no": "nb"}.get(code, code): score for code, score in _identifier().rank(text)}
    best, known = max(ranked, key=ranked.get), max(trained, key=lambda code: ranked.get(code, -math.inf))
    letters = [char for char in text if char.isalpha()]
    scripts = Counter(map(_script, letters))
    written = max(scripts, key=scripts.get, default=None)
    if written and written not in {_script_of(code) for code in trained}:
        return max((code for code in ranked if _script_of(code) == written), key=ranked.get, default=best if best not in trained else "en")
    return best if len(letters) >= LETTERS and ranked[best] - ranked.get(known, -math.inf) >= MARGIN else known


@functools.cache
def _script(char: str) -> str:
    """The writing system of a letter; Han and kana are one, for Japanese has both."""
    name = unicodedata.name(char, "?").split()[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA") else name.split("-")[0]


@functools.cache
def _script_of(code: str) -> str | None:
    """The writing system that a language's own handoff sentence is in."""
    found = Counter(_script(char) for char in languages()[code].say["human"] if char.isalpha()) if code in languages() else Counter()
    return max(found, key=found.get, default=None)


def _mistyped(clause: str, language: Language) -> list[tuple[int, int]]:
    """The places of words that are a slip away from a name for a person: one letter more, less, other or swapped, two in words of nine letters and more."""
    found = []
    for place, word in enumerate(clause.split()):
        if len(word) >= 5 and process.extractOne(word, language.names, scorer=OSA.distance, score_cutoff=1 + (len(word) >= 9)):
            found.append((place, place + 1))
    return found


CUES = ("asked", "asked_near", "asked_before", "asked_but_mentioned", "alone", "named", "named_but_mentioned", "mistyped", "request", "request_but_mentioned", "machine", "ai_question", *TOPICS, "nothing")
IN_A_QUESTION = ("asked", "asked_near", "asked_before", "named", "request", "machine", "nothing")         # cues that weigh something else where a question is asked
PIECES = 2.0          # how much all pieces weigh beside one cue
HASHED = 1 << 18      # places of the words and pieces of words of all languages together
SIZE = len(CUES) + len(IN_A_QUESTION) + 1 + HASHED


def cues(text: str, language: Language) -> dict[str, bool]:
    """What a message has, in any of its clauses, of what tells who needs a person from who only speaks of one; `nothing` where no cue is found."""
    found = dict.fromkeys(CUES, False)
    parts = clauses(text)
    words = sum(len(part) / 2 if language.code in WITHOUT_SPACES else part.count(" ") + 1 for part in parts)
    whole = normal(text).replace(" ", "") if language.code in WITHOUT_SPACES else normal(text)
    for topic in TOPICS:
        found[topic] = bool(language.topics[topic].search(whole))
    for part in parts:
        mentioned, wished = bool(language.spans("mention", part)), language.spans("wish", part)
        exact = language.spans("people", part)
        people = exact or ([] if language.code in WITHOUT_SPACES else _mistyped(part, language))
        near = any(b[0] - a[1] <= NEAR and a[0] - b[1] <= NEAR for a in wished for b in people)
        before = any(0 <= b[0] - a[1] <= 2 for a in wished for b in people)
        request, asked = bool(language.spans("request", part)), bool(people and wished)
        for name, holds in (
                ("machine", language.spans("machine", part)), ("ai_question", language.spans("ai_question", part)),
                ("request", request and not mentioned), ("request_but_mentioned", request and mentioned), ("alone", people and words <= FEW), ("mistyped", people and not exact),
                ("asked", asked and not mentioned), ("asked_near", near and not mentioned), ("asked_before", before and not mentioned), ("asked_but_mentioned", asked and mentioned),
                ("named", people and not wished and not mentioned), ("named_but_mentioned", people and not wished and mentioned)):
            found[name] = found[name] or bool(holds)
    found["nothing"] = not any(found.values())
    return found


def pieces(text: str, code: str) -> list[int]:
    """The places of a message's words, pairs of words, and pieces of four and five letters (of one to three signs where words are short), by language, hashed."""
    words = ["^", *re.sub(r"\d+", "0", normal(text)).split(), "$"]          # one number is as good as another
    found = {f"1{word}" for word in words} | {f"2{a} {b}" for a, b in pairwise(words)} | {f"3{a} {b}" for a, b in zip(words, words[2:], strict=False)}
    for length in (1, 2, 3) if code in (*WITHOUT_SPACES, "ko") else (4, 5):
        for word in words:
            found |= {f"c{padded[i:i + length]}" for padded in (f"<{word}>",) for i in range(len(padded) - length + 1)}
    return sorted({zlib.crc32(f"{code}{piece}".encode()) % HASHED for piece in found})


def features(text: str, language: Language) -> tuple[list[int], list[float]]:
    """A message as (places, values) of a vector of SIZE: its cues, those in a question once more, a constant, and its pieces, of a length of PIECES together."""
    found, asks = cues(text, language), any(mark in text for mark in "?？؟")
    held = [i for i, name in enumerate(CUES) if found[name]] + [len(CUES) + i for i, name in enumerate(IN_A_QUESTION) if asks and found[name]] + [len(CUES) + len(IN_A_QUESTION)]
    parts = pieces(text, language.code)
    return held + [SIZE - HASHED + place for place in parts], [1.0] * len(held) + [PIECES * len(parts) ** -0.5] * len(parts)


@functools.cache
def weights() -> tuple[np.ndarray, np.ndarray, float]:
    """(weights (SIZE, classes), bias (classes), temperature): the logits of a vector x are (x @ weights + bias) / temperature."""
    with np.load(FOLDER / "weights.npz") as held:
        return held["weights"].astype(np.float32), held["bias"], float(held["temperature"])


def probabilities(text: str, language: Language) -> dict[str, float]:
    """What a message is, by CLASSES, as probabilities."""
    matrix, bias, temperature = weights()
    places, values = features(text, language)
    logits = (np.asarray(values, np.float32) @ matrix[places] + bias) / temperature
    likely = np.exp(logits - logits.max())
    return dict(zip(CLASSES, (likely / likely.sum()).tolist(), strict=True))


def needs_person(text: str, language: Language) -> dict[str, float]:
    """`probabilities`, of the newest LONG characters; of one word or two, which belong to no language, in whichever language they name a person and a request is likeliest."""
    return _needs_person(text[-LONG:], language)


@functools.lru_cache(maxsize=4096)
def _needs_person(text: str, language: Language) -> dict[str, float]:
    few = normal(text).count(" ") < FEW
    others = [each for each in languages().values() if each is not language and cues(text, each)["alone"]] if few else []
    return max((probabilities(text, each) for each in (language, *others)), key=p_person)


def p_person(found: dict[str, float]) -> float:
    """The probability that a person must take over, of a message's probabilities."""
    return 1 - found["none"] - found["ai"]
