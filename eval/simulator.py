"""Simulated conversations: the company pack's customers and tools against an engine, judged by the world's true end state."""

from __future__ import annotations

from tqdm import tqdm

from data_prep.company.pack import Pack
from data_prep.company.talk import Talk, draw_talk
from data_prep.hermes import parse_reply
from serve.engine import Engine, Sampling


def draw_talks(pack: Pack, count: int, split: str, seed: int) -> list[Talk]:
    """The same customers for every candidate."""
    return [draw_talk(pack, number, split, seed, "unseen_weight") for number in range(count)]


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
        "success": talk.is_won(), "violations": sorted(set(world.violations)), "unasked": sorted(set(world.unasked)),
        "wants_human": any(verb == "handoff" for verb, _ in world.scenario["steps"]), "handed_off": world.handed_off(),
        "replies": talk.replies, "most_repeated": max((said.count(text) for text in said), default=0),
        "asked_again": talk.customer.asked_again, "ended": talk.customer.state if talk.is_over else "cut off", "messages": talk.messages}
