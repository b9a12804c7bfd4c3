"""Scores of any tool on the held-out sets: from the spans it found, or, as a black box, from the text it gave back."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from data_prep.statistics import wilson

Found = list[list[tuple[int, int]]]      # for every message, the (start, end) pairs a tool would replace; labels do not matter
RUN = 6                                  # so many digits of an identifier in a row are a leak
KEPT_PREFIX = 3                          # a stand-in may keep this much of the front: a country code, a card's brand


def masked(case: dict, found: Found) -> bool:
    """Does no alphanumeric character of any secret survive?"""
    return all(covered(case, span, found) for span in case["spans"])


def covered(case: dict, span: list, found: Found) -> bool:
    """Is every alphanumeric character of this one secret inside something found?"""
    index, start, end = span[:3]
    text = case["messages"][index]["content"]
    return all(any(a <= i < b for a, b in (pair[:2] for pair in found[index])) for i in range(start, end) if text[i].isalnum())


def touched(case: dict, found: Found) -> bool:
    """Was anything found that is no secret? In a case without secrets any find counts, whether it is marked `keep` or not."""
    if case["spans"]:
        return untouched(case, found)[0] < len(case["keep"])
    return any(found)


def untouched(case: dict, found: Found) -> tuple[int, int]:
    """How many of the `keep` spans nothing found reaches into, of how many."""
    free = [not any(a < end and start < b for a, b in (pair[:2] for pair in found[index])) for index, start, end in case["keep"]]
    return sum(free), len(free)


def untouched_text(case: dict, output: list[str]) -> tuple[int, int]:
    """The same from the text given back: how many of the `keep` pieces still stand in their message, as often as before."""
    free = [output[index].count(piece) >= case["messages"][index]["content"].count(piece)
            for index, start, end in case["keep"] for piece in [case["messages"][index]["content"][start:end]]]
    return sum(free), len(free)


def survives(case: dict, output: list[str]) -> list[tuple[str, str]]:
    """The secrets of which something can still be read in the text given back, with what can be read: (kind, piece).

    Of a name: a word of four letters or more (of a shorter name all of it). Of an IBAN: eight characters in a row after the
    first four. Of anything else with six digits: six in a row after the first three, wherever separators stand. Else the
    whole of it, letters and digits only, and of a mail address also what stands before the @. Pieces that also stand
    outside the secrets are counted, not blamed.
    """
    rest, output, leaked = [_plain(text) for text in _outside(case)], [_plain(text) for text in output], []
    for index, start, end, kind in case["spans"]:
        secret = _plain(case["messages"][index]["content"][start:end])
        for piece, count in _pieces(secret, kind):
            if sum(count(piece, text) for text in output) > sum(count(piece, text) for text in rest):
                leaked.append((kind, piece))
                break
    return leaked


def _outside(case: dict) -> list[str]:
    """The messages with their secrets cut out, so that what remains is nobody's leak."""
    texts = [message["content"] for message in case["messages"]]
    for index, start, end, _ in sorted(case["spans"], key=lambda span: span[:2], reverse=True):
        texts[index] = texts[index][:start] + " \x00 " + texts[index][end:]
    return texts


def _plain(text: str) -> str:
    """The text as a reader sees it: entities and compatibility characters resolved, tags and invisible characters gone."""
    text = unicodedata.normalize("NFKC", re.sub(r"<[^<>@]*>", " ", html.unescape(text)))
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def _pieces(secret: str, kind: str) -> list[tuple]:
    """(piece, how to count it in a text) for everything of this secret that must not be readable."""
    digits = _digits(secret)
    if kind == "name":
        words = re.findall(r"[^\W_]+", secret.casefold())
        return [(word, _words) for word in words if len(word) >= 4 or len(words) == 1] or [("".join(words), _anywhere)]
    if kind == "iban" and len(code := _alphanumeric(secret)) >= 8:
        return [(code[i:i + 8], _anywhere) for i in range(min(4, len(code) - 8), len(code) - 7)]
    if len(digits) >= RUN and kind not in ("email", "url", "ip", "other"):
        first = min(KEPT_PREFIX, len(digits) - RUN)
        return [(digits[i:i + RUN], _digit_runs) for i in range(first, len(digits) - RUN + 1)]
    whole = _alphanumeric(secret)
    local = _alphanumeric(secret.split("@")[0]) if kind == "email" and "@" in secret else ""
    return [(whole, _anywhere), *([(local, _anywhere)] if len(local) >= 4 else [])]


def _words(piece: str, text: str) -> int:
    return re.findall(r"[^\W_]+", text.casefold()).count(piece)


def _anywhere(piece: str, text: str) -> int:
    return _alphanumeric(text).count(piece)


def _digit_runs(piece: str, text: str) -> int:
    """How often the digits stand in a row, at most three other characters between any two."""
    return sum(_digits(run).count(piece) for run in re.findall(r"\d(?:[^\d]{0,3}\d)*", text))


def _digits(text: str) -> str:
    return "".join(str(int(c)) for c in text if c.isdecimal())


def _alphanumeric(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def caught(pair: dict, flagged_clean: bool, flagged_leaky: bool) -> dict[str, bool]:
    """T10: was the leak seen, and was the clean text left in peace?"""
    return {"detected": flagged_leaky, "false alarm": flagged_clean}


def table(results: Iterable[tuple[str, bool]]) -> list[dict]:
    """Rows of group, n, share and its 95 % Wilson interval from (group, success) pairs; all groups together last."""
    results = list(results)
    total, good = Counter(group for group, _ in results), Counter(group for group, success in results if success)
    rows = [(group, good[group], n) for group, n in total.items()] + [("all", good.total(), total.total())]
    return [{"group": group, "n": n, "successes": k, "share": k / n if n else 0.0, "low": wilson(k, n)[0], "high": wilson(k, n)[1]} for group, k, n in rows]


def text_table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = ["| group | n | share | 95 % interval |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {r['group']} | {r['n']} | {r['share']:.3f} | {r['low']:.3f} to {r['high']:.3f} |" for r in rows])
