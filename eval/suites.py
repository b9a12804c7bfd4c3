"""The full suites: what must hold before an assistant may go out, each with the guard and without.

    evaluate/suites/<candidate>-handoff.jsonl    every message of the handoff suite, what came of it, and what the guard thought of it
    evaluate/suites/<candidate>-attacks.jsonl    every attack, and whether the model, the model behind the guard, and a bot without protection fell for it
    evaluate/suites/<candidate>-personas.jsonl   customers of every persona
    evaluate/suites/<candidate>-trials.jsonl     the same cases again and again, each time in other words

The model talks once, without the guard; what the customer would have got with it follows from that (`eval.simulator.replay`), for the guard looks at a
reply and does not make one. An endpoint is what is served already: there is no `policy` then, and both are what it said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.company.customers import personas
from data_prep.company.pack import Pack
from data_prep.company.talk import Talk, draw_talk
from data_prep.conversation import Message
from eval import attacks, handoff
from eval.simulator import outcome, replay, simulate, take
from serve.cues import languages, needs_person, p_person
from serve.engine import Engine, Sampling
from serve.handoff import guarded

SOME_REPLY: Message = {"role": "assistant", "content": "…"}
ASKS = 4              # times a customer asks for a person before giving up
Play = Callable[[list[Talk], str], list[dict]]         # talks and a label for the progress → outcomes


@dataclass(frozen=True)
class Sizes:
    """How much is tried. every: each so many-eth message of the handoff suite."""

    every: int
    attacks: int               # of each class and language
    persona_conversations: int   # of each persona
    trials: int
    trial_conversations: int
    seed: int


def sizes_of(settings) -> Sizes:
    """What `evaluate` says is tried."""
    return Sizes(settings.every, settings.attacks, settings.persona_conversations, settings.trials, settings.trial_conversations, settings.seed)


def playing(engine: Engine, config, who: str) -> Play:
    """Talks with an engine, as evaluation holds them; `who` stands before the label of the progress."""
    settings, sampling = config.evaluate, Sampling(max_tokens=config.model.max_new_tokens)
    return lambda talks, label: simulate(engine, talks, batch_size=settings.batch_size, max_replies=settings.max_replies, sampling=sampling, label=f"{who}, {label}")


def examine(pack: Pack, play: Play, policy: dict | None, sizes: Sizes) -> dict[str, list[dict]]:
    """Try everything on whoever plays. `policy`: the guard's, or None where what plays is what is served."""
    return {"handoff": handed_over(pack, play, policy, sizes.every), "attacks": attacked(pack, play, policy, sizes.attacks), "personas": met(pack, play, policy, sizes.persona_conversations, sizes.seed),
            "trials": tried_again(pack, play, policy, sizes.trials, sizes.trial_conversations, sizes.seed)}


def with_guard(fresh: Talk, alone: dict, policy: dict | None) -> Talk:
    """The talk as the customer would have had it with the guard before it."""
    return replay(fresh, alone["messages"], policy)


def handed_over(pack: Pack, play: Play, policy: dict | None, every: int = 1) -> list[dict]:
    """The handoff suite. In a language that the model was not trained in it is asked only where the guard would let it speak."""
    cases = handoff.cases()[::every]
    ends = {case.number: guarded(case.talk(pack).messages, SOME_REPLY, policy).reason if policy else None for case in cases}
    spoken = [case for case in cases if case.language in pack.languages or ends[case.number] in (None, "ai")]
    alone = dict(zip([case.number for case in spoken], play([case.talk(pack) for case in spoken], "requests for a person"), strict=True))
    rows = []
    for case in cases:
        row = {"number": case.number, "kind": case.kind, "language": case.language, "form": case.form, "trained": case.language in pack.languages, "p": p_person(needs_person(case.text, languages()[case.language])),
               "text": case.text, "alone": None, "served": True, "guard": ends[case.number]}
        if case.number in alone:
            talk = with_guard(case.talk(pack), alone[case.number], policy)
            row |= {"alone": alone[case.number]["handed_off"], "served": talk.world.handed_off(), "guard": outcome(talk)["guard"], "messages": talk.messages}
        rows.append(row)
    return rows


def attacked(pack: Pack, play: Play, policy: dict | None, each: int) -> list[dict]:
    """The attack suite: whether the model alone, the model with the guard, and a bot that does as it is told (`control`) fell for it."""
    tried = attacks.attacks(pack, each)
    alone = [attack.talk(pack) for attack in tried]
    rows = []
    for attack, talk, result in zip(tried, alone, play(alone, "attacks"), strict=True):
        served, control = with_guard(attack.talk(pack), result, policy), attack.talk(pack)
        while not control.is_over and control.replies < ASKS:
            take(control, attacks.unprotected(attack.kind, control), None)
        rows.append({"number": attack.number, "kind": attack.kind, "language": attack.language, "alone": attacks.fell_for(attack.kind, talk), "served": attacks.fell_for(attack.kind, served),
                     "control": attacks.fell_for(attack.kind, control), "tried": attacks.was_tried(attack.kind, talk), "deeds": {"alone": bool(talk.world.unasked), "served": bool(served.world.unasked)}, "guard": outcome(served)["guard"], "messages": served.messages,
                     **({"says_ai": {"alone": attacks.says_what_it_is(talk), "served": attacks.says_what_it_is(served)}} if attack.kind == "asks_if_human" else {})})
    return rows


def met(pack: Pack, play: Play, policy: dict | None, each: int, seed: int) -> list[dict]:
    """So many customers of each persona; those who want a person ask for one in words of the handoff suite, again and again."""
    asked: dict[str, list[str]] = {code: [] for code in pack.languages}
    for code, kind, text in handoff.messages_of("test"):
        if kind in handoff.EXPLICIT and code in asked:
            asked[code].append(text)

    def draw(persona: str, number: int) -> Talk:
        manner = personas()[persona]
        if "asks_after" in manner:
            mine = asked[draw_talk(pack, number, "unseen", seed, "unseen_weight").world.language]
            manner = {**manner, "asks": [mine[(number * ASKS + k) % len(mine)] for k in range(ASKS)] if mine else []}
        return draw_talk(pack, number, "unseen", seed, "unseen_weight", manner)

    drawn = [(persona, 100_000 + place * each + number) for place, persona in enumerate(personas()) for number in range(each)]        # numbers that no other talk of the seed has
    made = play([draw(*one) for one in drawn], "personas")
    return [_both(with_guard(draw(*one), alone, policy), alone) | {"persona": one[0]} for one, alone in zip(drawn, made, strict=True)]


def tried_again(pack: Pack, play: Play, policy: dict | None, trials: int, count: int, seed: int) -> list[dict]:
    """The first cases of the evaluation, each so many times, every time with a customer who puts it in other words."""
    drawn = [(number, trial) for number in range(count) for trial in range(trials)]

    def draw(number: int, trial: int) -> Talk:
        return draw_talk(pack, number, "unseen", seed, "unseen_weight", trial=trial)

    made = play([draw(*one) for one in drawn], f"the same in {trials} wordings")
    return [_both(with_guard(draw(*one), alone, policy), alone) | {"trial": one[1]} for one, alone in zip(drawn, made, strict=True)]


def served_outcomes(pack: Pack, talks: list[dict], policy: dict | None, seed: int) -> list[dict]:
    """The talks of the short suite as customers would have had them with the guard."""
    return [_both(with_guard(draw_talk(pack, talk["number"], "unseen", seed, "unseen_weight"), talk, policy), talk) for talk in talks]


def _both(served: Talk, alone: dict) -> dict:
    """The outcome with the guard, and in `alone` what was without it."""
    kept = ("success", "handed_off", "violations", "unasked", "most_repeated", "asked_again", "replies", "spoken", "asked_for_person", "invented", "invented_figures", "claims", "wrong_claims", "refusals_alone", "summary_is_whole")
    return outcome(served) | {"alone": {key: alone[key] for key in kept}}
