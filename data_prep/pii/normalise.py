"""Shadow text: what a text says once its disguises are taken off, with a way back to the original's offsets.

Detectors look at the shadow, masking cuts the original. A shadow undoes HTML entities, percent- and JSON-escapes,
compatibility forms (NFKC, Unicode TR15), digits of other scripts, invisible characters, look-alike letters in tokens of
mixed scripts (Unicode TR39) and digits spelled as words. Each of its characters knows what it stands for.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from num2words import num2words

from data_prep.pii.announce import data

SEVERAL = "\ue000"   # a private character: none is left in a shadow
SPELLED = 4          # so many number words in a row are read as digits; fewer are prose

_escaped = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,8});|%[2-7][0-9a-fA-F]|\\+u[0-9a-fA-F]{4}|\\+[nrt/\"]|</?(?:br|b|i|p|span|div|em|strong|td|tr|li|u)(?:\s[^<>]{0,80})?/?>", re.IGNORECASE)
_escapes = {"n": "\n", "r": "\r", "t": "\t", "/": "/", '"': '"'}
_word = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_word_or_digits = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+")
_between = re.compile(r"[\s,.\-–]{1,3}")
_lookalike = str.maketrans(dict(zip("аеорсхуіѕјԁԛԝАВЕКМНОРСТХІЅЈУαορνικυΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "aeopcxyisjdqwABEKMHOPCTXISJYaopvikuABEZHIKMNOPTYX", strict=True)))
_beyond_ascii = re.compile(r"[^\x00-\x7f]")
_foreign = re.compile("[\u0370-\u052f]")
_latin = re.compile("[A-Za-z0-9@]")
_token = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Shadow:
    """`text[i]` stands for `original[starts[i]:ends[i]]`; both None where the shadow is the original itself."""

    text: str
    starts: list[int] | None = None
    ends: list[int] | None = None
    spelled: tuple[tuple[int, int], ...] = ()          # where digits stand that words say

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The span of the original that the shadow's [start, end) stands for; start < end."""
        return (start, end) if self.starts is None else (self.starts[start], self.ends[end - 1])


def shadow(text: str, language: str | None = "en") -> Shadow:
    """The shadow of a text, in time linear in its length. language: whose number words to read, beside English ones; None: none, for JSON has its own null."""
    if not ("&" in text or "%" in text or "\\" in text or "<" in text):
        plain = text if text.isascii() else text.translate(_one_for_one)
        if SEVERAL not in plain:
            return _spelled(Shadow(_in_latin(plain)), language)
    characters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    position = 0
    for match in [*_escaped.finditer(text), None]:
        stop = match.start() if match else len(text)
        for beyond in [*_beyond_ascii.finditer(text, position, stop), None]:
            end = beyond.start() if beyond else stop
            characters.extend(text[position:end])          # plain ASCII stands for itself
            starts.extend(range(position, end))
            ends.extend(range(position + 1, end + 1))
            if beyond:
                _put(beyond.group(), end, end + 1, characters, starts, ends)
                position = end + 1
        if match:
            for character in _unescaped(match.group()):
                _put(character, match.start(), match.end(), characters, starts, ends)
            position = match.end()
    return _spelled(Shadow(_in_latin("".join(characters)), starts, ends), language)


def _in_latin(plain: str) -> str:
    """Greek and Cyrillic look-alikes inside a Latin word or number become what they pretend to be."""
    if plain.isascii() or not _foreign.search(plain):
        return plain
    return _token.sub(lambda m: m.group().translate(_lookalike) if _foreign.search(m.group()) and _latin.search(m.group()) else m.group(), plain)


def _put(character: str, start: int, end: int, characters: list[str], starts: list[int], ends: list[int]) -> None:
    """Add what one character comes down to: nothing for an invisible one, two for a ligature."""
    if character < "\x80":
        made = character
    elif unicodedata.combining(character):
        whole = unicodedata.normalize("NFC", characters[-1] + character) if characters else ""
        if len(whole) == 1:
            characters[-1] = whole
        if ends:
            ends[-1] = end
        return
    else:
        made = _folded(character)
    for one in made:
        characters.append(one)
        starts.append(start)
        ends.append(end)


@functools.lru_cache(4096)
def _folded(character: str) -> str:
    kind = unicodedata.category(character)
    if kind in ("Cf", "Me", "Mn"):
        return ""
    if kind in ("Cs", "Cc", "Co"):        # a lone surrogate, a control or a private character says nothing
        return " "
    if kind == "Nd":
        return str(unicodedata.decimal(character))
    if kind == "Pd":
        return "-"
    if kind in ("Zs", "Zl", "Zp", "So", "Sk"):
        made = unicodedata.normalize("NFKC", character)
        return made if made.isascii() and made.isalnum() else " "
    return unicodedata.normalize("NFKC", character)


class _OneForOne(dict):
    """For str.translate: what a character comes down to where that is one character, else SEVERAL."""

    def __missing__(self, code: int) -> str:
        made = chr(code) if code < 128 else "" if unicodedata.combining(chr(code)) else _folded(chr(code))
        self[code] = made if len(made) == 1 else SEVERAL
        return self[code]


_one_for_one = _OneForOne()


def _unescaped(sequence: str) -> str:
    if sequence[0] == "<":
        return " "
    if sequence[0] == "&":
        return html.unescape(sequence)
    if sequence[0] == "%":
        return chr(int(sequence[1:], 16))
    bare = sequence.lstrip("\\")
    return chr(int(bare[1:], 16)) if bare[0] == "u" and len(bare) == 5 else _escapes[bare]


# ---------------------------------------------------------------------------------------------------------------------
# Digits spelled as words
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def number_words(language: str) -> tuple[dict[str, list[tuple[tuple[str, ...], str]]], dict[str, int]]:
    """(first word → [(further words, digits)], the longest first; word → how often the next number counts), in a language and
    in English: "sju" → "7", "quatre vingt dix sept" → "97", "double" → 2. Up to 99, by num2words where it has the language."""
    table = data("digits.yaml")["languages"]
    spoken: dict[tuple[str, ...], str] = {}
    times: dict[str, int] = {}
    for code in dict.fromkeys((language, "en")):
        row = table.get(code, {"digits": []})
        units = [str(forms).casefold().split() for forms in row["digits"]]
        for number, forms in enumerate(units):
            spoken.update({tuple(_pieces(form)): str(number) for form in forms})
        for ten, forms in enumerate(row.get("tens", []), 2):
            for form in str(forms).casefold().split():
                spoken.setdefault((form,), f"{ten}0")
                for unit in (unit for each in units[1:] for unit in each):
                    number = f"{ten}{next(n for n, each in enumerate(units) if unit in each)}"
                    spoken.setdefault((form, unit), number)
                    spoken.setdefault((form + unit,), number)
                    if "and" in row:
                        spoken.setdefault((form, row["and"], unit), number)
                    if "inverted" in row:
                        spoken.setdefault((unit + row["inverted"] + form,), number)
        for number in range(10, 100):
            try:
                spoken.setdefault(tuple(_pieces(num2words(number, lang=code).casefold())), str(number))
            except NotImplementedError:
                break
        for key, count in (("double", 2), ("triple", 3)):
            times.update(dict.fromkeys(str(row.get(key, "")).casefold().split(), count))
    by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for words, digits in spoken.items():
        by_first.setdefault(words[0], []).append((words[1:], digits))
    return {first: sorted(rows, key=lambda row: -len(row[0])) for first, rows in by_first.items()}, times


def _pieces(phrase: str) -> list[str]:
    return _word.findall(phrase)


class _Said(NamedTuple):
    """Digits, and where they are said; from_words: by words, not by numerals."""

    digits: str
    start: int
    end: int
    from_words: bool


def _spelled(plain: Shadow, language: str | None) -> Shadow:
    """The shadow with runs of number words written as digits."""
    if language is None:
        return plain
    spoken, times = number_words(language)
    if next(islice((word for word in _word.findall(plain.text) if word.casefold() in spoken), 1, None), None) is None:          # fewer than two number words
        return plain
    runs = [run for run in _runs(plain.text, spoken, times) if sum(said.from_words for said in run) >= 2 and sum(len(said.digits) for said in run) >= SPELLED + any(len(said.digits) > 1 for said in run)]
    if not runs:
        return plain
    characters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    position, spelled = 0, []
    for run in [*runs, None]:
        stop = run[0].start if run else len(plain.text)
        for index in range(position, stop):
            start, end = plain.original(index, index + 1)
            characters.append(plain.text[index])
            starts.append(start)
            ends.append(end)
        if run:
            spelled.append((len(characters), len(characters) + sum(len(said.digits) for said in run)))
            for said in run:
                start, end = plain.original(said.start, said.end)
                characters += said.digits
                starts += [start] * len(said.digits)
                ends += [end] * len(said.digits)
            position = run[-1].end
    return Shadow("".join(characters), starts, ends, tuple(spelled))


def _runs(text: str, spoken: dict, times: dict) -> list[list[_Said]]:
    """Numbers, in words and numerals, with little between them."""
    words = [(match.group().casefold(), match.start(), match.end()) for match in _word_or_digits.finditer(text)]
    runs: list[list[_Said]] = []
    at, end, repeat = 0, -1, None
    while at < len(words):
        word, start, _ = words[at]
        if word in times and repeat is None:
            repeat, at = words[at], at + 1
            continue
        said = _number_at(words, at, spoken)
        if said is None:
            repeat, at = None, at + 1
            continue
        digits, stop = said
        if repeat is not None and _between.fullmatch(text, repeat[2], start):
            digits, start = digits * times[repeat[0]], repeat[1]
        repeat = None
        found = _Said(digits, start, words[stop - 1][2], not word.isdigit())
        if runs and end >= 0 and _between.fullmatch(text, end, found.start):
            runs[-1].append(found)
        else:
            runs.append([found])
        end, at = found.end, stop
    return runs


def _number_at(words: list[tuple[str, int, int]], at: int, spoken: dict) -> tuple[str, int] | None:
    """(digits, index behind them) of the longest number that begins at a word."""
    word = words[at][0]
    if word.isdigit():
        return word, at + 1
    for rest, digits in spoken.get(word, ()):
        if len(rest) <= len(words) - at - 1 and all(words[at + 1 + i][0] == each for i, each in enumerate(rest)) and words[at + len(rest)][2] - words[at][1] < 40:
            return digits, at + 1 + len(rest)
    return None
