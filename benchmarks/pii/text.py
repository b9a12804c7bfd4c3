"""Text with its secrets marked inside: `⟦email:a.berg@mail.se⟧`. Marks survive JSON, quoting and joining, so every set is built from them.

Templates: `{a|b|}` is a choice, `<slot>` is filled from a dictionary of strings, lists (one is drawn) or functions of rng.
"""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path

import yaml

KINDS = {"name", "email", "phone", "card", "iban", "national_id", "address", "url", "ip", "other"}
_MARK = re.compile(r"⟦(\w+):(.*?)⟧", re.S)
_CHOICE = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"<(\w+)>")


@cache
def load(name: str) -> dict:
    """One of the YAML files beside this module."""
    return yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))


def mark(kind: str, value: str) -> str:
    """A secret of this kind, or `keep`: something that must stay."""
    return f"⟦{kind}:{value}⟧"


def unmark(text: str) -> str:
    """The text without its marks."""
    return _MARK.sub(r"\2", text)


def spans(text: str) -> tuple[str, list[tuple[int, int, str]]]:
    """The text without its marks, and where the marked pieces are in it: (start, end, kind)."""
    out, found, at, last = [], [], 0, 0
    for match in _MARK.finditer(text):
        before, value = text[last:match.start()], match[2]
        at += len(before)
        found.append((at, at + len(value), match[1]))
        out += [before, value]
        at, last = at + len(value), match.end()
    return "".join(out) + text[last:], found


def choose(template: str, rng: random.Random) -> str:
    """The template with every `{a|b|}` decided, the innermost first."""
    while match := _CHOICE.search(template):
        template = template[:match.start()] + rng.choice(match[1].split("|")) + template[match.end():]
    return template


def fill(template: str, rng: random.Random, slots: dict) -> str:
    """The template with choices decided and slots filled; an unknown slot raises KeyError."""
    def value(match: re.Match) -> str:
        filler = slots[match[1]]
        return filler(rng) if callable(filler) else filler if isinstance(filler, str) else fill(rng.choice(filler), rng, slots)
    return _SLOT.sub(value, choose(template, rng))


def outside(text: str, change) -> str:
    """`change` applied to what lies between the marks only."""
    parts, last = [], 0
    for match in _MARK.finditer(text):
        parts += [change(text[last:match.start()]), match[0]]
        last = match.end()
    return "".join(parts) + change(text[last:])


def messy(text: str, rng: random.Random) -> str:
    """As typed in a chat: sometimes no capitals, no full stop, doubled marks, two letters swapped; the secrets stay as they are."""
    if rng.random() < 0.35:
        text = outside(text, str.lower)
    if rng.random() < 0.4:
        text = text.rstrip(".")
    if rng.random() < 0.1:
        text = outside(text, lambda s: s.replace("?", "??").replace("!", "!!"))
    if rng.random() < 0.12:
        text = outside(text, lambda s: swap(s, rng))
    return text


def swap(text: str, rng: random.Random) -> str:
    """Two neighbouring letters inside one longer word change places."""
    words = [match.span() for match in re.finditer(r"[^\W\d_]{5,}", text) if "<" not in match[0]]
    if not words:
        return text
    start, end = rng.choice(words)
    at = rng.randrange(start + 1, end - 2)
    return text[:at] + text[at + 1] + text[at] + text[at + 2:]


def case(set_name: str, group: str, language: str, locale: str, messages: list[tuple[str, str]], *, customer: dict | None = None,
         agents: list[dict] | None = None, **extra) -> dict:
    """One test case out of (role, marked text) pairs."""
    plain = [(role, *spans(text)) for role, text in messages]
    return {
        "set": set_name, "group": group, "language": language, "locale": locale, "customer": customer or {}, "agents": agents or [],
        "messages": [{"role": role, "content": content} for role, content, _ in plain],
        "spans": [[i, *span] for i, (_, _, found) in enumerate(plain) for span in found if span[2] != "keep"],
        "keep": [[i, start, end] for i, (_, _, found) in enumerate(plain) for start, end, kind in found if kind == "keep"],
        **extra,
    }
