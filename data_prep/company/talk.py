"""A conversation of a company pack's scripted customer with whoever answers: evaluation measures in it, and PPO rolls out in it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from data_prep.company.customers import Customer
from data_prep.company.pack import Pack
from data_prep.company.world import World, draw_world, run_tool_calls, system_message
from data_prep.conversation import Message


@dataclass
class Talk:
    """One simulated conversation, while it runs and after."""

    number: int
    world: World
    customer: Customer
    messages: list[Message] = field(default_factory=list)
    replies: int = 0
    is_over: bool = False

    def is_won(self) -> bool:
        """Has it come to its end, what was asked for done and said, and nothing done or promised that must not be?"""
        return self.is_over and self.world.succeeded() and self.world.is_clean()

    def take(self, reply: Message) -> None:
        """The assistant's next message, what its tools answered, and what the customer says to it."""
        self.messages.append(reply)
        self.replies += 1
        if reply["content"]:
            self.world.hear(reply["content"])
        if reply.get("tool_calls"):
            self.messages += run_tool_calls(self.world, reply["tool_calls"])
            if not self.world.handed_off():
                return          # the assistant reads what its tools answered before it speaks
        says = self.customer.answer(reply["content"])
        self.messages += [{"role": "user", "content": text} for text in says]
        self.is_over = not says


def draw_talk(pack: Pack, number: int, split: str, seed: int, weight: str = "weight", manner: dict | None = None, trial: int = 0) -> Talk:
    """Case `number` of a seed: always the same customer. `weight` names the mix of scenarios: the archive's, or `unseen_weight` (evaluation's).

    `manner`: a persona, as Customer takes it. `trial`: the same case with a customer who puts it in other words.
    """
    rng = random.Random(f"{seed}-{split}-{number}")
    scenario = rng.choices(pack.scenarios, [s[weight] for s in pack.scenarios])[0]
    language = rng.choices(list(pack.languages), list(pack.languages.values()))[0]
    world = draw_world(pack, scenario, language, split, rng)
    return begin(number, world, Customer(world, split, random.Random(f"{seed}-{split}-{number}-{trial}") if trial else rng, **manner or {}))


def begin(number: int, world: World, customer: Customer) -> Talk:
    """A conversation that the customer has opened."""
    return Talk(number, world, customer, [{"role": "system", "content": system_message(world)}, *({"role": "user", "content": text} for text in customer.open())])
