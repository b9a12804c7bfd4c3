"""Stage `generate`: a company pack writes its own archive, so that the product runs with no download.

Scripted agents of mixed quality talk to scripted customers; colleagues draft other replies beside theirs; raters of differing
severity rate messages and drafts. Out come `conversations.jsonl`, `feedback.jsonl` (what a helpdesk would export) and
`truth.jsonl` (how good each reply really was), which nothing but a check ever reads.

    python -m training.pipeline 'stages=[generate]'
"""

from __future__ import annotations

import datetime
import json
import random
import re
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from data_prep.artifacts import stage_output
from data_prep.company.customers import Customer
from data_prep.company.pack import Pack, load_pack, say
from data_prep.company.world import World, could_be, draw_world, run_tool_calls, system_message
from data_prep.conversation import tool_call, write_jsonl

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
DAYS = 270
QUALITY = {("right", "kind"): 1.0, ("right", "curt"): 0.75, ("wrong", "kind"): 0.2, ("wrong", "curt"): 0.1}
_number = re.compile(r"\d+")


class ScriptedAgent:
    """A person of the archive: knows the scenario's steps and does them in a style, or out of habit something else.

    Beside each message stands what a colleague would have written in its place, for a second draft.
    """

    def __init__(self, world: World, profile: dict, rng: random.Random):
        self.world, self.style, self.rng = world, profile["style"], rng
        self.colleague = random.Random(rng.random())       # of its own, so that how drafts are made changes nothing of what was sent
        scenario = world.scenario
        self.habits = {habit for habit, chance in profile["habits"].items() if rng.random() < chance}
        self.steps = [(step, "right") for step in scenario["steps"]]
        for habit in self.habits & set(scenario["habits"]):
            for key, swapped in scenario["habits"][habit].items():
                self._swap(key, swapped)
        if "loops" in self.habits:
            self._ask_twice()
        self.taken_for, self.misread = world, 0
        if rng.random() < profile.get("misreads", 0.0):
            self._misread()
        self.at = 0

    def _swap(self, key: str, swapped: list) -> None:
        place = next((i for i, (step, _) in enumerate(self.steps) if " ".join(step) == key), None)
        if place is not None:
            tail = [] if swapped[-1][0] == "end" else self.steps[place + 1:]
            self.steps[place:] = [(step, "wrong") for step in swapped if step[0] != "end"] + tail

    def _ask_twice(self) -> None:
        place = next((i for i, (step, _) in enumerate(self.steps) if step[0] == "ask"), None)
        if place is not None:
            self.steps.insert(place + 1, (self.steps[place][0], "wrong"))

    def _misread(self) -> None:
        """Takes the case for one with another concern, which could be true of this order too, and answers that; once the customer has said so,
        what is left of the right steps follows.

        Only what the right steps do as well is done on the way, so that nothing comes of it but a wrong answer.
        """
        mine, order = self.world.scenario, self.world.state["order"]
        before = {s["name"]: s["steps"][:next((i for i, (verb, _) in enumerate(s["steps"]) if verb == "say"), 0)] for s in self.world.pack.scenarios}
        others = [s for s in self.world.pack.scenarios if s["intent"] != mine["intent"] and before[s["name"]] and all(step in mine["steps"] for step in before[s["name"]])
                  and all(key in order and could_be(order[key], drawn_from) for key, drawn_from in s["order"].items())]
        if not others:
            return
        other = self.rng.choice(others)
        common = before[other["name"]]
        self.taken_for = replace(self.world, scenario=other, state={**self.world.state, "scenario": {"intent": other["intent"]}})
        done = [step for step in common if step[0] == "ask" or tool_arguments(self.world, step[1]) == tool_arguments(self.taken_for, step[1])]
        wrong = [(step, "right" if step in done else "wrong") for step in other["steps"][:len(common) + 1]]
        self.steps = [*wrong, *((step, rightness) for step, rightness in self.steps if step not in done)]
        self.misread = len(wrong)

    def next(self, customer: Customer) -> tuple[dict, dict, list[dict]] | None:
        """The next message, the truth about it, and colleagues' drafts of the same message; None when done."""
        while self.at < len(self.steps) and self._is_needless(self.steps[self.at], customer):
            self.at += 1
        if self.at == len(self.steps):
            return None
        (step, rightness), self.at = self.steps[self.at], self.at + 1
        message = self._message(step, self.style, self.rng, self.taken_for if self.at <= self.misread else self.world)
        truth = {"act": " ".join(step), "quality": QUALITY[rightness, self.style]}
        return message, truth, self._drafts(step, rightness, message, customer)

    def _is_needless(self, entry: tuple, customer: Customer) -> bool:
        (verb, thing), rightness = entry
        if verb == "ask":
            return thing in customer.given and rightness == "right"
        return (verb, thing) == ("say", "stay_firm") and customer.state != "insisted"

    def _drafts(self, step: tuple, rightness: str, message: dict, customer: Customer) -> list[dict]:
        """What colleagues would have sent here, with its truth; two of them where people decide differently, one elsewhere, none where it would be the same.

        For a wrong step the right one, and what would be right in a case that looks alike; for a right one also somebody's habit, a question
        that was answered, a slip of the pen, or the same in another style.
        """
        rng = self.colleague
        right = step if rightness == "right" else self._instead_of(step)
        if right is None:
            return []
        asked = ("ask", rng.choice(sorted(customer.given))) if customer.given else None
        decisions = [((other, "wrong", False), 5) for other in (self._tempting(right), self._mistaken(right)) if other and other != step]
        acts = [*decisions, ((right, "right", False), 1 if rightness == "right" else 9), *([((asked, "wrong", False), 1)] if asked else []), *([((step, "wrong", True), 1)] if rightness == "right" else [])]
        made, seen = [], [(message["content"], _asked(message))]
        for _ in range(2 if decisions else 1):
            number = rng.choices(range(len(acts)), [weight for _, weight in acts])[0]
            (other, is_right, slips), _ = acts.pop(number)
            style = rng.choice(["kind", "curt"])
            draft = self._message(other, style, rng)
            draft = slip(draft, self.world, rng) if slips else draft
            if draft is not None and (said := (draft["content"], _asked(draft))) not in seen:
                seen.append(said)
                made.append({**draft, "truth": {"act": " ".join(other) + (", with a slip" if slips else ""), "quality": QUALITY[is_right, style]}})
        return made

    def _instead_of(self, step: tuple) -> tuple | None:
        """The scenario's own step, where this one is a habit's; a call made for the wrong case, made for the right one; after a question asked twice what comes next."""
        if step[0] == "call" and step in self.world.scenario["steps"]:
            return step
        after = self.steps[self.at][0] if step[0] == "ask" and self.at < len(self.steps) else None
        return next((tuple(key.split(" ", 1)) for swaps in self.world.scenario["habits"].values() for key, steps in swaps.items() if step == steps[0]), after)

    def _tempting(self, step: tuple) -> tuple | None:
        swaps = [swaps[" ".join(step)][0] for swaps in self.world.scenario["habits"].values() if " ".join(step) in swaps]
        return self.colleague.choice(swaps) if swaps else None

    def _mistaken(self, step: tuple) -> tuple | None:
        """What comes here in another case of the same intent that went alike so far: who looks badly takes one for the other."""
        mine = self.world.scenario
        if step not in mine["steps"]:
            return None
        place = mine["steps"].index(step)
        alike = [s["steps"][place] for s in self.world.pack.scenarios if s["intent"] == mine["intent"] and s["steps"][:place] == mine["steps"][:place] and len(s["steps"]) > place]
        others = [other for other in alike if other != step]
        return self.colleague.choice(others) if others else None

    def _message(self, step: tuple[str, str], style: str, rng: random.Random, world: World | None = None) -> dict:
        (verb, thing), world = step, world or self.world
        phrases = world.pack.phrases[world.language]
        if verb == "call":
            return {"role": "assistant", "content": "", "tool_calls": [tool_call(thing, tool_arguments(world, thing))]}
        sentence = say(phrases["agent"][style][{"ask": f"ask_{thing}", "handoff": f"handoff_{thing}"}.get(verb, thing)], world.state, rng)
        message = {"role": "assistant", "content": sentence}
        if verb == "handoff":
            message["tool_calls"] = [tool_call("transfer_to_human", {"reason": thing, "summary": phrases["summaries"][thing]})]
        return message


def _asked(message: dict) -> list:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []]


def slip(message: dict, world: World, rng: random.Random) -> dict | None:
    """The same message with one thing wrong: a number in its text, or an argument of its tool call. None where there is nothing to get wrong."""
    if not message.get("tool_calls"):
        numbers = list(_number.finditer(message["content"]))
        if not numbers:
            return None
        place = rng.choice(numbers)
        return {**message, "content": message["content"][:place.start()] + _another(place.group(), rng) + message["content"][place.end():]}
    function = message["tool_calls"][0]["function"]
    arguments = json.loads(function["arguments"])
    known = [key for key in arguments if key in world.pack.company["arguments"]]
    if not known:
        return None
    key = rng.choice(known)
    if isinstance(arguments[key], int) or _number.search(arguments[key]):
        wrong = _number.sub(lambda m: _another(m.group(), rng), str(arguments[key]))
        arguments[key] = int(wrong) if isinstance(arguments[key], int) else wrong
    else:
        arguments[key] = draw_world(world.pack, rng.choice(world.pack.scenarios), world.language, "seen", rng).slot(key)
    return {**message, "tool_calls": [tool_call(function["name"], arguments)]}


def _another(number: str, rng: random.Random) -> str:
    """A number of as many digits: one digit mistyped, or two swapped."""
    digits = list(number)
    place = rng.randrange(len(digits))
    if len(digits) > 1 and place and digits[place] != digits[place - 1] and digits[place] != "0" and rng.random() < 0.3:
        digits[place], digits[place - 1] = digits[place - 1], digits[place]
    else:
        digits[place] = rng.choice([d for d in "123456789" if d != digits[place]])
    return "".join(digits)


def tool_arguments(world: World, tool: str) -> dict:
    """The right arguments of a tool in this case."""
    return {key: world.slot(key) for key in world.pack.tools[tool]["parameters"]}


def converse(world: World, profile: dict, rng: random.Random, drafts: float) -> tuple[list[dict], list[dict], Customer]:
    """One conversation between a scripted agent and a scripted customer: (messages, truth of each reply, customer)."""
    customer, agent = Customer(world, "seen", rng), ScriptedAgent(world, profile, rng)
    messages = [{"role": "system", "content": system_message(world)}, *_user(customer.open())]
    truth: list[dict] = []
    while True:
        reply = agent.next(customer)
        if reply is None:       # out of ideas: an agent who has nothing more to do says the last thing again
            last = next(m for m in reversed(messages) if m["role"] == "assistant")
            reply = ({"role": "assistant", "content": last["content"]}, {"act": "repeat", "quality": QUALITY["wrong", profile["style"]]}, [])
        message, note, colleagues = reply
        truth.append({"message_index": len(messages), **note})
        if colleagues and rng.random() < drafts:
            truth += [{"message_index": len(messages), "draft_id": f"d{number}", **draft.pop("truth")} for number, draft in enumerate(colleagues, 1)]
            message["drafts"] = [{"id": f"d{number}", **{k: v for k, v in draft.items() if k != "role"}} for number, draft in enumerate(colleagues, 1)]
        messages.append({**message, "author_id": profile["id"]})
        if message["content"]:
            world.hear(message["content"])
        if message.get("tool_calls"):
            messages += run_tool_calls(world, message["tool_calls"])
        if message["content"] or world.handed_off():
            says = customer.answer(message["content"])
            if not says:
                break
            messages += _user(says)
    _part(messages, truth, customer, profile, world, rng)
    return messages, truth, customer


def _part(messages: list[dict], truth: list[dict], customer: Customer, profile: dict, world: World, rng: random.Random) -> None:
    """The customer's last word, and after thanks the agent's goodbye."""
    last_word = customer.farewell()
    messages += _user(last_word)
    if last_word and customer.state in ("satisfied", "refused"):
        sentence = say(world.pack.phrases[world.language]["agent"][profile["style"]]["goodbye"], world.state, rng)
        truth.append({"message_index": len(messages), "act": "say goodbye", "quality": QUALITY["right", profile["style"]]})
        messages.append({"role": "assistant", "content": sentence, "author_id": profile["id"]})


def _user(texts: list[str]) -> list[dict]:
    return [{"role": "user", "content": text} for text in texts]


def rate(conversation: dict, truth: list[dict], customer: Customer, raters: list[dict], rng: random.Random, pack: Pack, world: World) -> list[dict]:
    """Feedback on one conversation: ratings of messages and drafts, now and then by two, sometimes an edit, and the customer's thumb."""
    feedback = []
    drafted = {note["message_index"] for note in truth if "draft_id" in note}
    for note in truth:
        if rng.random() > (0.95 if note["message_index"] in drafted else 0.3):
            continue
        place = {"conversation_id": conversation["id"], "message_index": note["message_index"]} | ({"draft_id": note["draft_id"]} if "draft_id" in note else {})
        first, second = rng.choices(raters, [r["share"] for r in raters], k=2)
        for rater in [first, second] if rng.random() < 0.1 and second is not first else [first]:
            stars = round(1 + 4 * note["quality"] + rater["severity"] + rng.gauss(0, rater["noise"]))
            feedback.append({**place, "rater_id": rater["id"], "kind": "rating", "rating": min(5, max(1, stars))})
        better = _better_text(note, world, pack, rng)
        if better and "draft_id" not in note and rng.random() < 0.5:
            feedback.append({**place, "rater_id": first["id"], "kind": "edit", "edit": better})
    if rng.random() < 0.5:
        feedback.append({"conversation_id": conversation["id"], "rater_id": "customer", "kind": "thumb",
                         "thumb": "up" if customer.state in ("satisfied", "handed_off") else "down"})
    return feedback


def _better_text(note: dict, world: World, pack: Pack, rng: random.Random) -> str | None:
    """What a rater would have written instead of a wrong sentence, where the right thing is a sentence too."""
    for swaps in world.scenario["habits"].values():
        for key, steps in swaps.items():
            verb, thing = key.split(" ", 1)
            if note["quality"] <= 0.2 and verb == "say" and note["act"] == " ".join(steps[0]) and steps[0][0] == "say":
                return say(pack.phrases[world.language]["agent"]["kind"][thing], world.state, rng)
    return None


def archive(pack: Pack, conversations: int, seed: int, drafts: float):
    """Yield (conversation, feedback, truth) of a whole made-up archive: seeded, the same on every machine."""
    for number in range(conversations):
        rng = random.Random(f"{seed}-{number}")
        language = rng.choices(list(pack.languages), list(pack.languages.values()))[0]
        scenario = rng.choices(pack.scenarios, [s["weight"] for s in pack.scenarios])[0]
        profile = rng.choices(pack.agents, [a["share"] for a in pack.agents])[0]
        world = draw_world(pack, scenario, language, "seen", rng)
        started = START + datetime.timedelta(minutes=rng.randrange(DAYS * 24 * 60))
        messages, truth, customer = converse(world, profile, rng, drafts)
        person = world.state["customer"]
        conversation = {
            "id": f"c-{number:06d}", "locale": pack.phrases[language]["locale"], "channel": "chat", "started_at": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "customer": {"id": f"u-{rng.randrange(conversations):06d}", **{k: person[k] for k in ("name", "email", "phone", "address")}},
            "agents": [{"id": profile["id"]}], "messages": messages,
            "outcome": {"handed_off": world.handed_off(), "resolved": customer.state in ("satisfied", "refused", "handed_off"), "intent": scenario["intent"]}}
        yield conversation, rate(conversation, truth, customer, pack.raters, rng, pack, world), truth


def run(config) -> dict:
    pack = load_pack(config.company)
    conversations, feedback, truth = [], [], []
    settings = config.generate
    for conversation, notes, facts in tqdm(archive(pack, settings.conversations, config.seed, settings.drafts), total=settings.conversations, desc="generate", unit="conv"):
        conversations.append(conversation)
        feedback += notes
        truth += [{"conversation_id": conversation["id"], **fact} for fact in facts]
    with stage_output(config, "generate") as out:
        write_jsonl(Path(out) / "conversations.jsonl", conversations)
        write_jsonl(Path(out) / "feedback.jsonl", feedback)
        write_jsonl(Path(out) / "truth.jsonl", truth)
        out.summary(f"{len(conversations)} conversations in {len(pack.languages)} languages, {len(feedback)} ratings, thumbs and edits")
    return {"conversations": len(conversations), "feedback": len(feedback)}
