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
from pathlib import Path

import yaml

SPELLED = 4          # so many number words in a row are read as digits; fewer are prose

_escaped = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,8});|%[2-7][0-9a-fA-F]|\\+u[0-9a-fA-F]{4}|\\+[nrt/\"]")
_escapes = {"n": "\n", "r": "\r", "t": "\t", "/": "/", '"': '"'}
_word = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_between = re.compile(r"[\s,.\-–]{1,3}")
_lookalike = str.maketrans(dict(zip("аеорсхуіѕјԁԛԝАВЕКМНОРСТХІЅЈУαορνικυΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "aeopcxyisjdqwABEKMHOPCTXISJYaopvikuABEZHIKMNOPTYX", strict=True)))
_foreign = re.compile(r"\S*[\u0370-\u052f]\S*")


@dataclass(frozen=True, slots=True)
class Shadow:
    """`text[i]` stands for `original[starts[i]:ends[i]]`; both None where the shadow is the original itself."""

    text: str
    starts: list[int] | None = None
    ends: list[int] | None = None

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The span of the original that the shadow's [start, end) stands for; start < end."""
        return (start, end) if self.starts is None else (self.starts[start], self.ends[end - 1])


def shadow(text: str) -> Shadow:
    """The shadow of a text, in time linear in its length."""
    if text.isascii() and not ("&" in text or "%" in text or "\\" in text):
        return _spelled(Shadow(text))
    characters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    position = 0
    for match in [*_escaped.finditer(text), None]:
        stop = match.start() if match else len(text)
        for index in range(position, stop):
            _put(text[index], index, index + 1, characters, starts, ends)
        if match:
            for character in _unescaped(match.group()):
                _put(character, match.start(), match.end(), characters, starts, ends)
            position = match.end()
    plain = "".join(characters)
    plain = _foreign.sub(lambda m: m.group().translate(_lookalike) if re.search(r"[A-Za-z0-9@]", m.group()) else m.group(), plain)
    return _spelled(Shadow(plain, starts, ends))


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


def _unescaped(sequence: str) -> str:
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
def number_words() -> tuple[dict[str, str], dict[str, int]]:
    """(word → digits, word → how often the next one counts) over all languages: "sju" → "7", "einundzwanzig" → "21", "double" → 2."""
    values: dict[str, str] = {}
    times: dict[str, int] = {}
    for table in yaml.load((Path(__file__).parent / "digits.yaml").read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["languages"].values():
        units = [str(forms).casefold().split() for forms in table["digits"]]
        for number, forms in enumerate(units):
            values.update({form: str(number) for form in forms if form not in values})
        for ten, forms in enumerate(table.get("tens", []), 2):
            for form in str(forms).casefold().split():
                values.setdefault(form, f"{ten}0")
                if "inverted" in table:
                    values.update({unit + table["inverted"] + form: f"{ten}{n}" for n, each in enumerate(units) if n for unit in each})
        for key, count in (("double", 2), ("triple", 3)):
            times.update(dict.fromkeys(str(table.get(key, "")).casefold().split(), count))
    return values, times


def _spelled(plain: Shadow) -> Shadow:
    """The shadow with runs of number words written as digits."""
    values, times = number_words()
    if sum(word.strip(".,;:!?").casefold() in values for word in plain.text.split()) < SPELLED - 1 and "-" not in plain.text and "," not in plain.text:
        return plain
    runs = [run for run in _runs(plain.text, values, times) if sum(match.group().casefold() in values for match in run) >= SPELLED]
    if not runs:
        return plain
    characters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    position = 0
    for run in [*runs, None]:
        stop = run[0].start() if run else len(plain.text)
        for index in range(position, stop):
            start, end = plain.original(index, index + 1)
            characters.append(plain.text[index])
            starts.append(start)
            ends.append(end)
        if run:
            for digit, match in _digits(run, values, times):
                start, end = plain.original(match.start(), match.end())
                characters.append(digit)
                starts.append(start)
                ends.append(end)
            position = run[-1].end()
    return Shadow("".join(characters), starts, ends)


def _runs(text: str, values: dict, times: dict) -> list[list[re.Match]]:
    """Runs of number words, and words like "double", with little between them."""
    runs: list[list[re.Match]] = []
    for match in _word.finditer(text):
        if match.group().casefold() not in values and match.group().casefold() not in times:
            continue
        if runs and _between.fullmatch(text, runs[-1][-1].end(), match.start()):
            runs[-1].append(match)
        else:
            runs.append([match])
    return runs


def _digits(run: list[re.Match], values: dict, times: dict) -> list[tuple[str, re.Match]]:
    """Each digit that a run says, with the word that says it: "twenty" and "one" make 21, "double seven" 77."""
    digits: list[tuple[str, re.Match]] = []
    repeat, after_ten = 1, False
    for match in run:
        word = match.group().casefold()
        if word in times:
            repeat, after_ten = times[word], False
            continue
        value = values[word]
        if after_ten and len(value) == 1 and value != "0":
            digits[-1] = (value, match)
        else:
            digits += [(digit, match) for digit in value * repeat]
        after_ten, repeat = len(value) == 2 and value.endswith("0"), 1
    return digits
