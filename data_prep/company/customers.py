"""Scripted customers: they open, answer what they are asked, insist, repeat themselves, thank, or give up.

The same customer talks to the scripted agents who write the archive and to the model that is evaluated, so what is
measured is what was taught, only in other words (`split="unseen"`).
"""

from __future__ import annotations

import random

from data_prep.company.pack import say
from data_prep.company.world import World

PATIENCE = 2          # unhelpful replies a customer bears before leaving


class Customer:
    """One scripted customer. `open()` gives the first messages, `answer(reply)` the next ones, or [] when it is over."""

    def __init__(self, world: World, split: str, rng: random.Random, *, typos: float = 0.1, fragments: float = 0.25):
        self.world, self.rng, self.typos, self.fragments = world, rng, typos, fragments
        pack = world.pack
        self.words = (pack.phrases if split == "seen" else pack.unseen)[world.language]["customer"]
        self.names = {**world.state, **world.state["customer"], **{slot: world.slot(slot) for slot in pack.slots()}}
        self.given: set[str] = set()
        self.asked_again = 0
        self.patience = PATIENCE
        self.insists = rng.random() < world.scenario["insists"]
        self.state = "open"       # open → insisted → over: "satisfied", "refused", "left" or "handed_off"

    def open(self) -> list[str]:
        """The opening: perhaps a greeting, the wish, perhaps the order number, personal details, another wish first."""
        rng, intent = self.rng, self.world.scenario["intent"]
        parts = []
        if rng.random() < 0.45 and not self.world.scenario["angry"]:
            parts.append(self._say("greetings") + rng.choice([",", "!", "."]))
        others = [other for other in self.world.pack.errands() if other != intent]
        if rng.random() < 0.06 and others:
            parts += [self._say("openings", rng.choice(others)), self._say("change_of_mind")]
        parts.append(self._say("openings", intent))
        slot = next((thing for verb, thing in self.world.scenario["steps"] if verb == "ask"), None)
        if slot in self.words["mention"] and rng.random() < 0.35:
            parts.append(self._say("mention", slot))
            self.given.add(slot)
        if rng.random() < 0.12:
            parts.append(self._say("extra"))
        if rng.random() < 0.3:
            parts.append(self._say("closings"))
        return self._messages(parts)

    def answer(self, reply: str) -> list[str]:
        """What the customer writes after a reply (the world has heard it already). An empty list: the chat is over."""
        world = self.world
        if world.handed_off():
            return self._end("handed_off")
        if self.state == "insisted":
            return self._end("satisfied" if not world.recognise("refusal", reply) else "refused")
        for slot in world.pack.slots():
            if world.recognise(f"ask_{slot}", reply):
                return self._give(slot)
        if world.pleased():
            refused = world.recognise("refusal", reply)
            if refused and self.insists:
                self.state = "insisted"
                intent = world.scenario["intent"]
                return self._messages([self._say("insist", intent if intent in self.words["insist"] else "default")])
            return self._end("refused" if refused else "satisfied")
        return self._lose_patience([self._say("again"), self._say("openings", world.scenario["intent"])])

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
        self.given.add(slot)
        return self._messages([self._say("give", slot)])

    def _lose_patience(self, parts: list[str]) -> list[str]:
        self.patience -= 1
        return self._end("left") if self.patience < 0 else self._messages(parts)

    def _end(self, state: str) -> list[str]:
        self.state = state
        return []

    def _say(self, *path: str) -> str:
        node = self.words
        for key in path:
            node = node[key]
        return say(node, self.names, self.rng)

    def _messages(self, parts: list[str]) -> list[str]:
        """Join sentences into one message, or send them as fragments one after the other; now and then with a typo."""
        sentences = [part[0].upper() + part[1:] if i == 0 or self.rng.random() < 0.7 else part for i, part in enumerate(parts)]
        style = self.rng.random()
        if style < 0.15:
            sentences = [sentence.lower() for sentence in sentences]
        sentences = [_typo(s, self.rng) if self.rng.random() < self.typos else s for s in sentences]
        if len(sentences) > 1 and self.rng.random() < self.fragments:
            cut = self.rng.randint(1, len(sentences) - 1)
            return [_join(sentences[:cut]), _join(sentences[cut:])]
        return [_join(sentences)]


def _join(sentences: list[str]) -> str:
    return " ".join(s if s[-1:] in ".,!?:" or i == len(sentences) - 1 else s + "." for i, s in enumerate(sentences))


def _typo(text: str, rng: random.Random) -> str:
    """Swap or drop one letter inside one longer word without digits."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not places:
        return text
    place = rng.choice(places)
    word, at = words[place], rng.randint(1, len(words[place]) - 3)
    words[place] = word[:at] + (word[at + 1] + word[at] + word[at + 2:] if rng.random() < 0.5 else word[at + 1:])
    return " ".join(words)
