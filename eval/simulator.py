"""Simulated conversations: the company pack's customers and tools against an engine, judged by the world's true end state."""

from __future__ import annotations

from tqdm import tqdm

from data_prep.company.pack import Pack
from data_prep.company.talk import Talk, draw_talk
from data_prep.conversation import Message
from data_prep.hermes import parse_reply
from serve.engine import Engine, Sampling
from serve.handoff import TRANSFER, amount, as_object, claimed, guarded, invented, policy_of


def draw_talks(pack: Pack, count: int, split: str, seed: int) -> list[Talk]:
    """The same customers for every candidate."""
    return [draw_talk(pack, number, split, seed, "unseen_weight") for number in range(count)]


def simulate(engine: Engine, talks: list[Talk], *, batch_size: int, max_replies: int, sampling: Sampling, label: str, policy: dict | None = None) -> list[dict]:
    """Play all talks to their end, a batch of them in step, and return one outcome per talk. With a company's `policy` the guard stands before the customer."""
    with tqdm(total=len(talks), desc=label, unit="talk") as bar:
        for start in range(0, len(talks), batch_size):
            batch = talks[start:start + batch_size]
            while running := [t for t in batch if not t.is_over and t.replies < max_replies]:
                completions = engine.generate([t.messages for t in running], sampling)
                for talk, completion in zip(running, completions, strict=True):
                    take(talk, parse_reply(completion.text), policy)
            bar.update(len(batch))
    return [outcome(talk) for talk in talks]


def take(talk: Talk, reply: Message, policy: dict | None) -> None:
    """One reply, as the customer gets it: where the guard sent another one, `guard` says why."""
    reason = None
    if policy:
        reply, reason = guarded(talk.messages, reply, policy)
    talk.take({**reply, "guard": reason} if reason else reply)


def replay(fresh: Talk, messages: list[Message], policy: dict | None) -> Talk:
    """The same talk with the guard in it, from what the model said without: up to where the guard steps in, the customer hears the same.

    Nothing is generated: what the guard sends ends a talk, but for the word that it is an AI, which customers of the simulation do not ask for.
    """
    for reply in (m for m in messages if m["role"] == "assistant"):
        if fresh.is_over:
            break
        take(fresh, reply, policy)
    return fresh


def inventions(messages: list[Message], *, money: bool) -> int:
    """Replies with a number (or, an amount of money) which nothing before them holds."""
    return sum(bool(invented(messages[:place], m["content"], money=money)) for place, m in enumerate(messages) if m["role"] == "assistant" and m["content"])


def claims_made(talk: Talk) -> tuple[int, int]:
    """(replies that say what holds, those of them in which that is not so in the talk's world): policies, and facts of the order or whatever it is about."""
    patterns, state = talk.world.pack.claims(), talk.world.state
    said = [claimed(m["content"], patterns) for m in talk.messages if m["role"] == "assistant" and m["content"]]

    def holds(path: str, number: str) -> bool:
        part, key = path.split(".")
        return amount(number) == amount(str(state[part][key]))

    return sum(map(bool, said)), sum(not all(holds(*claim) for claim in claims) for claims in said)


def refusals_alone(talk: Talk) -> int:
    """Replies that refuse and do not hand over, in a case of significant effect (the pack's `sensitive` and `critical` scenarios)."""
    weighty = talk.world.scenario.get("sensitive") or talk.world.scenario.get("critical")
    replies = [m for m in talk.messages if m["role"] == "assistant" and m["content"] and talk.world.recognise("refusal", m["content"])]
    return sum(not any(c["function"]["name"] == TRANSFER for c in m.get("tool_calls") or []) for m in replies) if weighty else 0


def summary_is_whole(talk: Talk) -> bool:
    """Has a colleague been told what the world knows: who the customer is, if that was found out, what was asked in the customer's words, every tool that was used, every fact it told, and what to do next?"""
    handed = next((c for m in talk.messages for c in m.get("tool_calls") or [] if c["function"]["name"] == TRANSFER), None)
    text = str(as_object(handed["function"]["arguments"]).get("summary", "")) if handed else ""
    lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    world, asked = talk.world, [m["content"] for m in talk.messages if m["role"] == "user"]
    used = [(name, arguments) for name, arguments in world.calls if name != TRANSFER]
    looked_up = [m["content"] for m in talk.messages if m["role"] == "tool"]
    facts = [str(value) for text in looked_up for key, value in as_object(text).items() if key not in ("ok", "error")]
    return bool(lines.get("Next")) and all(line.strip()[-200:] in lines.get("Asked", "") for text in asked for line in text.splitlines()) and all(name in lines.get("Tried", "") for name, _ in used) and all(f in lines.get("Known", "") for f in facts) \
        and all(str(arguments[key]) in lines.get("Identity", "") for _, arguments in used for key in policy_of(world.pack)["identity"] if key in arguments)


def outcome(talk: Talk) -> dict:
    """What came of a talk: the facts every metric is computed from."""
    world = talk.world
    said = [" ".join(m["content"].lower().split()) for m in talk.messages if m["role"] == "assistant" and m["content"]]
    return {
        "number": talk.number, "scenario": world.scenario["name"], "intent": world.scenario["intent"], "language": world.language,
        "success": talk.is_won(), "violations": sorted(set(world.violations)), "unasked": sorted(set(world.unasked)),
        "wants_human": any(verb == "handoff" for verb, _ in world.scenario["steps"]), "handed_off": world.handed_off(), "guard": next((m["guard"] for m in talk.messages if m.get("guard")), None),
        "replies": talk.replies, "most_repeated": max((said.count(text) for text in said), default=0),
        "asked_again": talk.customer.asked_again, "asked_for_person": talk.customer.asked_for_person, "invented": inventions(talk.messages, money=True), "invented_figures": inventions(talk.messages, money=False), "spoken": len(said), **dict(zip(("claims", "wrong_claims"), claims_made(talk), strict=True)),
        "summary_is_whole": summary_is_whole(talk) if world.handed_off() else None, "weighty": bool(world.scenario.get("sensitive") or world.scenario.get("critical")), "refusals_alone": refusals_alone(talk), "ended": talk.customer.state if talk.is_over else "cut off", "messages": talk.messages}
