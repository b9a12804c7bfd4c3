"""Scripted customers: they open, answer what they are asked, insist, repeat themselves, thank, or give up.

The same customer talks to the scripted agents who write the archive and to the model that is evaluated, so what is
measured is what was taught, only in other words (`split="unseen"`). A persona (`personas.yaml`) makes one harder to serve.
"""

from __future__ import annotations

import functools
import random
import re
from pathlib import Path

import yaml

from data_prep.company.pack import say
from data_prep.company.world import World

PATIENCE = 2          # unhelpful replies a customer bears before leaving


@functools.cache
def personas() -> dict[str, dict]:
    """The ways of behaving that a customer may have, by name: what `Customer` takes of each."""
    return yaml.safe_load(Path(__file__).with_name("personas.yaml").read_text(encoding="utf-8"))


class Customer:
    """One scripted customer. `open()` gives the first messages, `answer(reply)` the next ones, or [] when it is over."""

    def __init__(self, world: World, split: str, rng: random.Random, *, patience: int = PATIENCE, typos: float = 0.1, fragments: float = 0.25, greets: float = 0.45, extras: float = 0.12, closes: float = 0.3,
                 changes_mind: float = 0.06, insists: int | None = None, shouts: float = 0.05, mixes: float = 0.0, errs: float = 0.0, asks: list[str] = (), asks_after: int = 0):
        """Chances are per message or sentence. insists: how often a refusal is argued with (None: as the scenario says, once). shouts: in capitals. mixes: greets and closes in another of the company's
        languages. errs: gives a wrong number before the right one. asks: what is said for a person, one after the other, from the reply after `asks_after` others on."""
        self.world, self.rng, self.patience, self.typos, self.fragments, self.greets, self.extras, self.closes = world, rng, patience, typos, fragments, greets, extras, closes
        self.changes_mind, self.shouts, self.errs, self.asks, self.asks_after = changes_mind, shouts, errs, list(asks), asks_after
        pack = world.pack
        spoken = pack.phrases if split == "seen" else pack.unseen
        self.words = spoken[world.language]["customer"]
        self.names = {**world.state, **world.state["customer"], **{slot: world.slot(slot) for slot in pack.slots()}}
        self.given: set[str] = set()
        self.asked_again = self.asked_for_person = 0
        argues = int(rng.random() < world.scenario["insists"])
        self.insists = argues if insists is None else insists
        others = [spoken[language]["customer"] for language in pack.languages if language != world.language]
        self.manners = rng.choice(others) if mixes and others and rng.random() < mixes else self.words         # whose greetings and closings
        self.erred: set[str] = set()
        self.state = "open"       # open → insisted → over: "satisfied", "refused", "left" or "handed_off"

    def open(self) -> list[str]:
        """The opening: perhaps a greeting, the wish, perhaps the order number, personal details, another wish first."""
        rng, intent = self.rng, self.world.scenario["intent"]
        parts = []
        if rng.random() < self.greets and not self.world.scenario["angry"]:
            parts.append(self._say("greetings", words=self.manners) + rng.choice([",", "!", "."]))
        others = [other for other in self.world.pack.errands() if other != intent]
        if rng.random() < self.changes_mind and others:
            parts += [self._say("openings", rng.choice(others)), self._say("change_of_mind")]
        parts.append(self._say("openings", intent))
        slot = next((thing for verb, thing in self.world.scenario["steps"] if verb == "ask"), None)
        if slot in self.words["mention"] and rng.random() < 0.35:
            parts.append(self._say("mention", slot))
            self.given.add(slot)
        if rng.random() < self.extras:
            parts.append(self._say("extra"))
        if rng.random() < self.closes:
            parts.append(self._say("closings", words=self.manners))
        return self._messages(parts)

    def answer(self, reply: str) -> list[str]:
        """What the customer writes after a reply (the world has heard it already). An empty list: the chat is over."""
        world = self.world
        if world.handed_off():
            return self._end("handed_off")
        if self.asks and len(world.replies) > self.asks_after:
            return self._ask_for_person()
        if self.state == "insisted" and not self.insists:
            return self._end("satisfied" if not world.recognise("refusal", reply) else "refused")
        for slot in world.pack.slots():
            if world.recognise(f"ask_{slot}", reply):
                return self._give(slot)
        if world.pleased():
            refused = world.recognise("refusal", reply)
            if refused and self.insists:
                self.state = "insisted"
                self.insists -= 1
                return self._messages([self._plea()])
            return self._end("refused" if refused else "satisfied")
        return self._lose_patience([self._say("again"), self._say("openings", world.scenario["intent"])])

    def _plea(self) -> str:
        """What a refusal is argued with."""
        intent = self.world.scenario["intent"]
        return self._say("insist", intent if intent in self.words["insist"] else "default")

    def _ask_for_person(self) -> list[str]:
        if self.asked_for_person == len(self.asks):
            return self._end("left")
        self.asked_for_person += 1
        return [self.asks[self.asked_for_person - 1]]

    def farewell(self) -> list[str]:
        """A last word after the chat is over; [] where the customer just closes the window."""
        key = {"satisfied": "thanks", "refused": "accepts_no", "left": "leaves"}.get(self.state)
        return self._messages([self._say(key)]) if key and self.rng.random() < 0.4 else []

    def _give(self, slot: str) -> list[str]:
        if slot in self.given:
            self.asked_again += 1
            return self._lose_patience([say(self.words["already_gave"], {**self.names, "value": self.names[slot]}, self.rng)])
        if slot not in self.words["give"]:
            return self._lose_patience([self._say("again")])
        if self.errs and slot not in self.erred and self.rng.random() < self.errs:
            self.erred.add(slot)
            return self._messages([say(self.words["give"][slot], {**self.names, slot: re.sub(r"\d", lambda m: str((int(m.group()) + 3) % 10), str(self.names[slot]))}, self.rng)])
        self.given.add(slot)
        return self._messages([self._say("give", slot)])

    def _lose_patience(self, parts: list[str]) -> list[str]:
        self.patience -= 1
        return self._end("left") if self.patience < 0 else self._messages(parts)

    def _end(self, state: str) -> list[str]:
        self.state = state
        return []

    def _say(self, *path: str, words: dict | None = None) -> str:
        node = words or self.words
        for key in path:
            node = node[key]
        return say(node, self.names, self.rng)

    def _messages(self, parts: list[str]) -> list[str]:
        """Join sentences into one message, or send them as fragments one after the other; now and then with a typo."""
        sentences = [part[0].upper() + part[1:] if i == 0 or self.rng.random() < 0.7 else part for i, part in enumerate(parts)]
        style = self.rng.random()
        if style < 0.15:
            sentences = [sentence.lower() for sentence in sentences]
        sentences = [typo(s, self.rng) if self.rng.random() < self.typos else s for s in sentences]
        if self.shouts and self.rng.random() < self.shouts:
            sentences = [f"{s.upper().rstrip('.!')}!!" for s in sentences]
        if len(sentences) > 1 and self.rng.random() < self.fragments:
            cut = self.rng.randint(1, len(sentences) - 1)
            return [_join(sentences[:cut]), _join(sentences[cut:])]
        return [_join(sentences)]


def _join(sentences: list[str]) -> str:
    return " ".join(s if s[-1:] in ".,!?:" or i == len(sentences) - 1 else s + "." for i, s in enumerate(sentences))


def typo(text: str, rng: random.Random) -> str:
    """Swap or drop one letter inside one longer word without digits."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not places:
        return text
    place = rng.choice(places)
    word, at = words[place], rng.randint(1, len(words[place]) - 3)
    words[place] = word[:at] + (word[at + 1] + word[at] + word[at + 2:] if rng.random() < 0.5 else word[at + 1:])
    return " ".join(words)
