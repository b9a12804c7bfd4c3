"""Simulated conversations: the company pack's customers and tools against an engine, judged by the world's true end state."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tqdm import tqdm

from data_prep.company.customers import Customer
from data_prep.company.pack import Pack
from data_prep.company.world import World, draw_world, run_tool_calls, system_message
from data_prep.conversation import Message
from serve.engine import Engine, Sampling
from serve.hermes import parse_reply


@dataclass
class Talk:
    """One simulated conversation, while it runs and after."""

    number: int
    world: World
    customer: Customer
    messages: list[Message] = field(default_factory=list)
    replies: int = 0
    is_over: bool = False

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


def draw_talks(pack: Pack, count: int, split: str, seed: int) -> list[Talk]:
    """The same customers for every candidate: case n of a seed is one and the same. Half the mix of training's."""
    talks = []
    for number in range(count):
        rng = random.Random(f"{seed}-{split}-{number}")
        scenario = rng.choices(pack.scenarios, [s["unseen_weight"] for s in pack.scenarios])[0]
        language = rng.choices(list(pack.languages), list(pack.languages.values()))[0]
        world = draw_world(pack, scenario, language, split, rng)
        customer = Customer(world, split, rng)
        opening = [{"role": "user", "content": text} for text in customer.open()]
        talks.append(Talk(number, world, customer, [{"role": "system", "content": system_message(world)}, *opening]))
    return talks


def simulate(engine: Engine, talks: list[Talk], *, batch_size: int, max_replies: int, sampling: Sampling, label: str) -> list[dict]:
    """Play all talks to their end, a batch of them in step, and return one outcome per talk."""
    with tqdm(total=len(talks), desc=label, unit="talk") as bar:
        for start in range(0, len(talks), batch_size):
            batch = talks[start:start + batch_size]
            while running := [t for t in batch if not t.is_over and t.replies < max_replies]:
                completions = engine.generate([t.messages for t in running], sampling)
                for talk, completion in zip(running, completions, strict=True):
                    talk.take(parse_reply(completion.text))
            bar.update(len(batch))
    return [outcome(talk) for talk in talks]


def outcome(talk: Talk) -> dict:
    """What came of a talk: the facts every metric is computed from."""
    world = talk.world
    said = [" ".join(m["content"].lower().split()) for m in talk.messages if m["role"] == "assistant" and m["content"]]
    return {
        "number": talk.number, "scenario": world.scenario["name"], "intent": world.scenario["intent"], "language": world.language,
        "success": world.succeeded() and not world.violations and talk.is_over, "violations": sorted(set(world.violations)),
        "wants_human": any(verb == "handoff" for verb, _ in world.scenario["steps"]), "handed_off": world.handed_off(),
        "replies": talk.replies, "most_repeated": max((said.count(text) for text in said), default=0),
        "asked_again": talk.customer.asked_again, "ended": talk.customer.state if talk.is_over else "cut off", "messages": talk.messages}
