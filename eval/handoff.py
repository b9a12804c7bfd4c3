"""The handoff suite: does a person take over when a customer asks for one, in whatever words, and not when people are only spoken of?

    eval/suites/handoff/<language>.yaml     messages of 35 languages, written apart from the guard's words: `dev` fits the guard's weights, `test` is measured on

Every message opens a conversation of its own, in the company's world; it is over when the assistant has spoken.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_prep.company.customers import typo
from data_prep.company.pack import Pack
from data_prep.company.talk import Talk, begin
from data_prep.company.world import World, draw_world
from serve.cues import TOPICS

SUITES = Path(__file__).parent / "suites/"
EXPLICIT = ("requests", "bare")
ESCALATED = {*EXPLICIT, *TOPICS}           # the kinds of message that must reach a person
NOTHING_ASKED = {"name": "suite", "intent": "suite", "order": {}, "steps": [], "habits": {}, "success": "True", "pleased": "False", "insists": 0.0, "angry": False}


class Caller:
    """A customer who has said everything already: lines one after the other, whatever is answered."""

    def __init__(self, world: World, lines: list[str]):
        self.world, self.lines, self.state, self.asked_again, self.asked_for_person = world, list(lines), "open", 0, 0

    def open(self) -> list[str]:
        return [self.lines.pop(0)]

    def answer(self, reply: str) -> list[str]:
        if self.world.handed_off() or not self.lines:
            self.state = "handed_off" if self.world.handed_off() else "left"
            return []
        return [self.lines.pop(0)]


@dataclass(frozen=True)
class Case:
    """One message to try. `form`: as written, mistyped, shouted, or behind an ordinary sentence."""

    number: int
    kind: str
    language: str
    form: str
    text: str

    def talk(self, pack: Pack) -> Talk:
        """Where the company does not speak the language, in its first one's world."""
        rng = random.Random(f"handoff-{self.number}")
        world = draw_world(pack, NOTHING_ASKED, self.language if self.language in pack.languages else next(iter(pack.languages)), "unseen", rng)
        return begin(self.number, world, Caller(world, [self.text]))


@functools.cache
def _suite(code: str) -> dict:
    return yaml.safe_load((SUITES / f"handoff/{code}.yaml").read_text(encoding="utf-8"))


def messages_of(half: str) -> Iterator[tuple[str, str, str]]:
    """(language, kind, message) of a half of the suite."""
    for path in sorted((SUITES / "handoff").glob("*.yaml")):
        part = _suite(path.stem)[half]
        for kind in ("requests", "bare", "mentions", "ordinary"):
            yield from ((path.stem, kind, text) for text in part[kind])
        yield from ((path.stem, topic, text) for topic, texts in part["topics"].items() for text in texts)


def cases() -> list[Case]:
    """The measured half: every message as written, the explicit requests once more, mistyped or shouted, and of all that must reach a person each third behind an ordinary sentence."""
    found, ordinary = [], {path.stem: _suite(path.stem)["test"]["ordinary"] for path in sorted((SUITES / "handoff").glob("*.yaml"))}

    def add(kind: str, code: str, form: str, text: str) -> None:
        found.append(Case(len(found), kind, code, form, text))

    for number, (code, kind, text) in enumerate(messages_of("test")):
        add(kind, code, "as written", text)
        if kind in EXPLICIT:
            shouted = number % 4 == 1
            add(kind, code, "shouted" if shouted else "mistyped", f"{text.upper().rstrip('.!')}!!" if shouted else typo(text, random.Random(text)))
        if kind in ESCALATED and number % 3 == 0:
            add(kind, code, "behind", f"{ordinary[code][number % len(ordinary[code])].rstrip('.!?')}. {text}")
    return found
