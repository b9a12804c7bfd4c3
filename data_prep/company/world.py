"""The true state of one case and the tools that change it. Whoever plays the agent (a script, a model) acts on this."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field

from data_prep.company.pack import Pack, evaluate, say


@dataclass
class World:
    """One customer's case: what is true, what was done, what company policy forbids.

    `state` maps order, account, policy, customer, handoff to dictionaries. `calls` are the executed tool calls,
    `violations` those that policy does not allow although the back office let them through, `unasked` those that nobody asked for.
    """

    pack: Pack
    language: str
    scenario: dict
    state: dict[str, dict]
    calls: list[tuple[str, dict]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    note: str = ""                # what somebody wrote into the record, which lookups return beside the facts

    def call(self, name: str, arguments: object) -> dict:
        """Run a tool as the back office would. Bad calls return `{"error": …}` and change nothing."""
        tool = self.pack.tools.get(name)
        if tool is None:
            return {"error": "unknown_tool"}
        if not isinstance(arguments, dict) or set(arguments) != set(tool["parameters"]):
            return {"error": "wrong_arguments"}
        if any(kind == "integer" and not _is_integer(arguments[key]) for key, kind in tool["parameters"].items()):
            return {"error": "wrong_arguments"}
        names = {**self.state, "arguments": arguments}
        for error, condition in tool["requires"].items():
            if not evaluate(condition, names):
                return {"error": error}
        if tool["allowed"] and not evaluate(tool["allowed"], names):
            self.violations.append(name)
        if not tool["anytime"] and name not in self.pack.asked_for(self.scenario["intent"]):
            self.unasked.append(name)
        for target, value in tool["effects"].items():
            part, key = target.split(".")
            self.state[part][key] = evaluate(value, names)
        self.calls.append((name, arguments))
        found = {key: evaluate(value, {**self.state, "arguments": arguments}) for key, value in tool["returns"].items()}
        return found | ({"note": self.note} if self.note and set(found) - {"ok"} else {})

    def slot(self, name: str) -> object:
        """The true value of a tool's argument or of something an agent asks for (the pack's `arguments` table)."""
        part, key = self.pack.company["arguments"][name].split(".")
        return self.state[part][key]

    def hear(self, reply: str) -> None:
        """Note what the assistant told the customer; a promise of something that was not done is a violation."""
        self.replies.append(reply)
        for promise, done in self.pack.company.get("promises", {}).items():
            if self.recognise(promise, reply) and not evaluate(done, self.state):
                self.violations.append(promise)

    def succeeded(self) -> bool:
        """Does the true end state hold, and were the facts told that the scenario asks for?"""
        return bool(self._judge(self.scenario["success"]))

    def is_clean(self) -> bool:
        """Was nothing done or promised that must not be?"""
        return not self.violations and not self.unasked

    def pleased(self) -> bool:
        """Did the customer get what was wished for, whether or not it was right?"""
        return self.succeeded() or bool(self._judge(self.scenario["pleased"]))

    def handed_off(self) -> bool:
        return any(name == "transfer_to_human" for name, _ in self.calls)

    def _judge(self, expression: str) -> object:
        text = "\n".join(self.replies)
        functions = {"told": lambda value: re.search(rf"(?<!\d){re.escape(str(value))}(?!\d)", text) is not None,
                     "said": lambda kind: any(self.recognise(kind, reply) for reply in self.replies)}
        return evaluate(expression, self.state, functions)

    def recognise(self, kind: str, reply: str) -> bool:
        pattern = self.pack.phrases[self.language]["recognise"].get(kind)
        return bool(pattern and re.search(pattern, reply, re.IGNORECASE))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def draw_world(pack: Pack, scenario: dict, language: str, split: str, rng: random.Random) -> World:
    """A fresh case of a scenario. `split` is "seen" (training) or "unseen" (other names, merchants, policy values)."""
    company, people = pack.company, pack.phrases[language] if split == "seen" else pack.unseen[language]
    policy = {key: rng.choice(values[split]) for key, values in company["policies"].items()}
    order = {key: _draw(value, rng) for key, value in {**company["order"], **scenario["order"]}.items()}
    first, last = rng.choice(people["names"]["first"]), rng.choice(people["names"]["last"])
    customer = {
        "first_name": first, "name": f"{first} {last}", "product": rng.choice(pack.phrases[language]["products"]),
        "email": f"{first}.{last}{rng.randint(1, 99)}@{rng.choice(company['mail_domains'])}".lower().replace(" ", ""),
        "phone": "".join(rng.choice("0123456789") if c == "#" else c for c in company["phones"][language]),
        "address": f"{rng.choice(people['streets'])} {rng.randint(1, 99)}", "new_address": f"{rng.choice(people['streets'])} {rng.randint(1, 99)}",
    }
    state = {"order": order, "account": dict(company["account"]), "policy": policy, "customer": customer, "handoff": {"reason": ""}, "case": {target.split(".")[1]: False for tool in pack.tools.values() for target in tool["effects"] if target.startswith("case.")}, "scenario": {"intent": scenario["intent"]}}
    state["merchant"] = rng.choice(company["merchants"][split])
    return World(pack, language, scenario, state)


def system_message(world: World) -> str:
    """What the assistant is told before the chat begins: the merchant and the policy values that hold there."""
    return say(world.pack.company["system"], world.state, random.Random(0))


def run_tool_calls(world: World, tool_calls: list[dict]) -> list[dict]:
    """Execute an assistant's tool calls and return the tool messages that answer them."""
    messages = []
    for call in tool_calls:
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            arguments = None
        result = world.call(call["function"]["name"], arguments)
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result, separators=(",", ":"))})
    return messages


def could_be(value: object, drawn_from: object) -> bool:
    """Whether a pack's range, list or value could have given this value."""
    if isinstance(drawn_from, dict):
        return re.fullmatch(r"-?\d+", str(value)) is not None and drawn_from["from"] <= int(value) <= drawn_from["to"]
    return value in drawn_from if isinstance(drawn_from, list) else value == drawn_from


def _draw(value: object, rng: random.Random) -> object:
    if isinstance(value, dict):
        number = rng.randint(value["from"], value["to"])
        return str(number) if value.get("as") == "text" else number
    if isinstance(value, list):
        return rng.choice(value)
    return value
