"""Names of people nobody told us about: phrases that announce them, lists of names, learned agent macros and a tagger.

Each source is weak alone; their union finds what one misses (`benchmarks/anonymise.py` measures it on names that none
of them has seen). The tagger is a linear-chain CRF (Lafferty et al. 2001) over the words of a turn, with full features
only where a word might be a name: that is what keeps it fast.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_prep.pii.lexicon import COMMON, FIRST, LAST, MISSPELT, ORDINARY, Lexicon, profile

WORD = re.compile(r"(?<![\w#@/{\[])[^\W\d_]+(?:['’ʼ-][^\W\d_]+)*(?!\w|-\d|://)")
STRONG = {"introduces", "speaks_to", "titles", "relatives", "asks"}
_gap = re.compile(r"[ \t\n,.:;!?()\"“”«»*_-]*")


@dataclass(slots=True)
class Turn:
    """The words of one stretch of text by one speaker, as the detectors see them."""

    words: list[str]            # as written
    lower: list[str]
    spans: list[tuple[int, int]]
    gaps: list[str]             # what stands before each word; gaps[-1] after the last
    flags: list[int]
    by_agent: bool
    asked: bool = False         # the other side has just asked for a name
    language: str = "en"
    native: list[bool] = field(default_factory=list)
    shouts: bool = False        # there is no small letter at all


def turn_of(text: str, start: int, end: int, by_agent: bool, lexicon: Lexicon, asked: bool = False) -> Turn:
    words, spans, gaps, position = [], [], [], start
    for match in WORD.finditer(text, start, end):
        words.append(match.group())
        spans.append(match.span())
        gaps.append(text[position:match.start()])
        position = match.end()
    gaps.append(text[position:end])
    lower = [word.casefold() for word in words]
    flags = lexicon.flags
    return Turn(words, lower, spans, gaps, [flags(word) for word in lower], by_agent, asked, lexicon.language, [word in lexicon.native for word in lower], not any(word.islower() for word in words))


def is_candidate(turn: Turn, i: int, cue: dict[int, str]) -> bool:
    """Whether a word may be a name at all: an unknown one, or one that some people are called."""
    flags, word = turn.flags[i], turn.words[i]
    if _is_titled(turn, i, cue):
        return True
    if (flags & COMMON and (not flags & (FIRST | LAST) or word.islower()) and not turn.asked) or len(word) < 2 or (word.isupper() and len(word) < 6 and not flags and not turn.shouts):         # an abbreviation
        return False
    if flags in (ORDINARY, MISSPELT) and word.islower():          # a name in small letters stands where names stand
        return i in cue or i - 1 in cue or turn.asked or (flags == ORDINARY and (len(turn.words) < 3 or (len(turn.words) < 6 and any(c in ",\n" for c in turn.gaps[i] + turn.gaps[i + 1]))))
    if flags == MISSPELT:
        return i > 0
    return bool(flags) or len(word) > 2 or word[0].isupper()


def _is_titled(turn: Turn, i: int, cue: dict[int, str]) -> bool:
    """"Mrs Lincoln", "Madame Comment": a title makes a name of an ordinary word with a capital, but for German, where they all have one."""
    return cue.get(i) == "titles" and turn.words[i][0].isupper() and turn.language != "de" and not turn.flags[i] & MISSPELT


def cues(turn: Turn, lexicon: Lexicon) -> dict[int, str]:
    """Word index → kind of the phrase right before it ("my name is" …), or "follows" where one stands right after it."""
    found: dict[int, str] = {}
    for i, word in enumerate(turn.lower):
        for rest, kind in lexicon.cues.get(word, ()):
            stop = i + 1 + len(rest)
            if tuple(turn.lower[i + 1:stop]) == rest:
                if kind == "follows":
                    found.setdefault(i - 1, kind)
                elif kind != "moves" and stop < len(turn.words):
                    found[stop] = kind
                break
    return found


def sentence_key(turn: Turn) -> str | None:
    """What an agent's sentence is but for its gap: a hash of its words with every run of possible names as one star; None without a gap."""
    parts: list[str] = []
    for i, word in enumerate(turn.lower):
        parts.append("*" if is_candidate(turn, i, {}) else word)
        if len(parts) > 1 and parts[-1] == parts[-2] == "*":
            parts.pop()
    if "*" not in parts or not 3 <= len(parts) <= 40:
        return None
    return hashlib.blake2b(" ".join(parts).encode(), digest_size=8).hexdigest()


def features(turn: Turn, cue: dict[int, str], people: frozenset[str] = frozenset(), hidden: frozenset[str] = frozenset()) -> list[list[str]]:
    """What the tagger sees of each word: little of an ordinary one, much of one that may be a name.

    people: words of known names, which are not to become features of their neighbours. hidden: names that are to look unlisted, so that the tagger learns to do without the lists.
    """
    rows = []
    count = len(turn.words)
    is_lower = all(word.islower() for word in turn.words)
    for i, word in enumerate(turn.words):
        if not is_candidate(turn, i, cue):
            rows.append(["c"])
            continue
        lower, flags = turn.lower[i], turn.flags[i]
        if lower in hidden:
            flags &= COMMON
        listed = ("F" if flags & FIRST else "") + ("L" if flags & LAST else "") + ("c" if flags & COMMON else "")
        shape = "x" if word.islower() else "X" if word.isupper() and len(word) > 1 else "Xx" if word[1:].islower() else "xX"
        start = i == 0 or any(c in turn.gaps[i] for c in ".!?\n")
        before = "^" if i == 0 else _seen(turn, i - 1, people)
        after = "$" if i + 1 == count else _seen(turn, i + 1, people)
        before2 = "^" if i < 2 else _seen(turn, i - 2, people)
        after2 = "$" if i + 2 >= count else _seen(turn, i + 2, people)
        zipf, witnesses = profile(lower, turn.language)
        seen = f"{int(zipf * 2) / 2 if zipf >= 2.5 else 0}w{min(witnesses, 4)}"
        native = turn.native[i]
        known = "w" if flags & ORDINARY else "m" if flags & MISSPELT else "c" if flags & COMMON else ""
        row = ["b", f"nat={native} {shape}", f"f={seen}", f"f={seen} g={listed}", f"o={known} s={shape}", f"o={known} g={listed} s={shape}", f"o={known} f={seen}", f"f={seen} s={shape} {turn.language == 'de'}", f"g={listed}", f"s={shape}{'l' if is_lower else ''}{'^' if start else ''}", f"g={listed} s={shape}", f"n={min(count, 4)}", f"r={turn.by_agent:d}",
               f"-1={before}", f"+1={after}", f"-2={before2}|{before}", f"+2={after}|{after2}", f"around={before}|{after}",
               f"3={lower[-3:]}", f"2={lower[-2:]}", f"p2={lower[:2]}", f"z={min(len(lower), 9)}", f"k={cue.get(i, '')}", f"k={cue.get(i, '')} g={listed} s={shape}", f"a={turn.asked:d} n={min(count, 4)}"]
        if i and turn.gaps[i].strip():
            row.append(f"<{turn.gaps[i].strip()[0]}")
        if "\n" in turn.gaps[i]:
            row.append("<nl")
        if turn.gaps[i + 1].strip():
            row.append(f">{turn.gaps[i + 1].strip()[0]}")
        rows.append(row)
    return rows


def _seen(turn: Turn, i: int, people: frozenset[str]) -> str:
    """A neighbour as a feature: itself where it is an ordinary word, else only its kind, so that no customer's name becomes one."""
    flags = turn.flags[i]
    if flags & (COMMON | ORDINARY) and turn.lower[i] not in people:
        return turn.lower[i]
    return "N" if flags else "u" if turn.words[i].islower() else "U"


def asks_for_a_name(turn: Turn, lexicon: Lexicon) -> bool:
    """Whether a turn holds one of the phrases that ask for a name."""
    for i, word in enumerate(turn.lower):
        for rest, kind in lexicon.cues.get(word, ()):
            if kind == "asks" and tuple(turn.lower[i + 1:i + 1 + len(rest)]) == rest:
                return True
    return False


def find_names(turn: Turn, lexicon: Lexicon) -> list[tuple[int, int, str]]:
    """(start, end, detector) of the names in one turn."""
    cue = cues(turn, lexicon)
    candidates = [i for i in range(len(turn.words)) if is_candidate(turn, i, cue)]
    if not candidates:
        return []
    if turn.by_agent and lexicon.slots and sentence_key(turn) in lexicon.slots:
        cue |= dict.fromkeys(candidates, "slot")
    candidates = [i for i in candidates if not is_product(turn, i) or cue.get(i) in ("introduces", "asks")]
    chosen: dict[int, str] = {}
    for i in candidates:
        detector = _by_rule(turn, i, cue, lexicon)
        if detector:
            chosen[i] = detector
    if lexicon.tagger is not None and len(chosen) < len(candidates):
        lexicon.tagger.set(features(turn, cue))
        for i in candidates:
            if i not in chosen and lexicon.tagger.marginal("N", i) >= _needed(turn, i, cue, lexicon):
                chosen[i] = "tagger"
    _extend(turn, chosen, lexicon)
    return list(_joined(turn, chosen, lexicon))


def _needed(turn: Turn, i: int, cue: dict[int, str], lexicon: Lexicon) -> float:
    """How sure the tagger must be: more of a word than of what nobody knows, unless a phrase announces a name."""
    if turn.flags[i] & (ORDINARY | COMMON) and cue.get(i) not in STRONG:
        return lexicon.of_a_word
    return lexicon.of_a_slip if turn.flags[i] & MISSPELT else lexicon.threshold


def is_product(turn: Turn, i: int) -> bool:
    """Whether a word is followed by a model number: "Nokia 3310", "Canon EOS 600D"."""
    return _model_number.match(turn.gaps[i + 1]) is not None or (i + 1 < len(turn.words) and turn.gaps[i + 1] == " " and turn.words[i + 1].isupper() and _model_number.match(turn.gaps[i + 2]) is not None)


_model_number = re.compile(r" [A-Z]{0,4}-?\d{1,5}(?![\d ]|[.:]\d\d(?!\d))")


def _by_rule(turn: Turn, i: int, cue: dict[int, str], lexicon: Lexicon) -> str | None:
    word, flags = turn.words[i], turn.flags[i]
    is_capital = word[0].isupper()
    is_listed = bool(flags & (FIRST | LAST))
    kind = cue.get(i)
    if kind == "slot":          # the gap of a macro: a name there, but not every capital of the sentence
        return "slot" if not flags & COMMON and ((is_capital and (is_listed or turn.language != "de")) or flags & FIRST) else None
    if turn.language == "de" and flags & ORDINARY and kind in ("speaks_to", "relatives"):          # a noun
        return None
    if kind in STRONG and (is_listed or (is_capital and not flags & COMMON) or _is_titled(turn, i, cue)):
        return "cue"
    if kind in ("greets", "thanks", "signs_off", "follows") and is_listed and not flags & COMMON:
        return "cue"
    if kind in ("greets", "signs_off", "follows") and is_capital and (not flags or (flags == ORDINARY and turn.language != "de" and not any(c in ".!?" for c in turn.gaps[i]))):
        return "cue"
    if turn.asked and len(turn.words) <= 4 and not flags & COMMON:
        return "cue"
    if is_listed and not flags & COMMON and len(word) > 2 and not (word.isupper() and len(word) == 3 and not turn.shouts) and (is_capital or (len(word) > 3 and turn.lower[i] in lexicon.native and not flags & ORDINARY)):
        return "list"
    return None


def _extend(turn: Turn, chosen: dict[int, str], lexicon: Lexicon) -> None:
    """A name takes its neighbours along: "Anna Xyzzy", "Anna van der Berg", "J. Berg"."""
    for i in sorted(chosen):
        j = i + 1
        while j < len(turn.words) and j not in chosen and turn.gaps[j] in (" ", ". ", " '"):
            if turn.lower[j] in lexicon.particles and j + 1 < len(turn.words) and turn.flags[j + 1] != COMMON:
                j += 1
                continue
            if not _is_surname(turn, j, lexicon) and (turn.flags[j] & COMMON or not (turn.words[j][0].isupper() or turn.flags[j])):
                break
            if turn.gaps[j] != " " or (turn.words[j].islower() and not turn.flags[j]):
                break
            chosen[j] = chosen[i]
            j += 1
        if i and i - 1 not in chosen and turn.gaps[i] == " " and turn.words[i][0].isupper() and (
                _is_surname(turn, i - 1, lexicon) or (turn.words[i - 1][0].isupper() and (not turn.flags[i - 1] or (turn.flags[i - 1] == MISSPELT and len(turn.words) == 2)))):
            chosen[i - 1] = chosen[i]


def _is_surname(turn: Turn, i: int, lexicon: Lexicon) -> bool:
    """Whether an ordinary word beside a name has a capital that only a name gives it: "Carla Armas", "Hei Odd Lund", but not "Danke Anna" nor "Mrs Lund"."""
    word = turn.words[i]
    return turn.language != "de" and i > 0 and len(word) > 1 and word[0].isupper() and word[1:].islower() and turn.lower[i] not in lexicon.cues and not any(c in ".!?:\n" for c in turn.gaps[i]) and any(w.islower() for w in turn.words)


def _joined(turn: Turn, chosen: dict[int, str], lexicon: Lexicon) -> Iterator[tuple[int, int, str]]:
    """Neighbouring words of one name as one span, particles and initials inside it included."""
    order = sorted(chosen)
    at = 0
    while at < len(order):
        first = last = order[at]
        while at + 1 < len(order):
            following = order[at + 1]
            between = turn.lower[last + 1:following]
            if following - last <= 3 and all(word in lexicon.particles or len(word) == 1 for word in between) and all(gap in (" ", ". ", "-") for gap in turn.gaps[last + 1:following + 1]):
                last, at = following, at + 1
            else:
                break
        yield turn.spans[first][0], turn.spans[last][1], chosen[first]
        at += 1
