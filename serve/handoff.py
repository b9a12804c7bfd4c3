"""The guard: between a model's reply and the customer, so that nobody goes in circles, is promised what was not done, gets what policy forbids, or is kept from a person.

    guarded(messages, reply, policy)     the reply that may be sent, and why where it is another one

It is a pure function of the conversation, the reply and data: the words of 35 languages in `serve/languages/` and a company's `policy_of(pack)`, which
goes out with the model as `handoff.json`. The endpoint and the simulated customers of evaluation call the same one. What it sends in place of a reply is
a message in the customer's language with the tool call `transfer_to_human(reason, summary)`.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from rapidfuzz.fuzz import ratio
from simpleeval import AttributeDoesNotExist, NameNotDefined

from data_prep.company.pack import Pack, evaluate
from data_prep.conversation import Message, tool_call
from serve.cues import TOPICS, cues, language_of, languages, needs_person, normal, p_person

POLICY = "handoff.json"                # beside the model that is served
NEEDED = {"languages", "promises", "slots", "claims", "arguments", "identity", "deeds", "tells", "system", "topics", "p_person"}        # what is in it
TRANSFER = "transfer_to_human"
AT_ONCE = {"self_harm", "threat"}      # topics in which nothing is looked up first
ALIKE = 90            # rapidfuzz ratio from which two replies are the same one
P_PERSON = 0.3        # probability from which a person takes over: rather once too often than once too seldom
AI = 0.5              # probability of a question whether this is a person from which it is answered
SENTENCE = 0.8        # and by one sentence of several
FIRST, LAST = 100, 200          # sentences of a turn that are read one by one: what is longer was pasted
VALUE = 80            # characters of a value in the system message, at most
ASKED = 2000          # characters of what the customer wrote that a summary holds, the newest
ENOUGH = 20           # letters in which a turn says by itself what language it is in
MOST_CALLS = 6        # tool calls in a row that a customer waits through
_sentence = re.compile(r"(?<=[.!?。！？؟…])\s+|\n+")
_number = re.compile(r"\d+(?:[.,'\u00a0\u202f ]\d{3}(?!\d))*(?:[.,]\d+)?")
_money = re.compile(r"[€$£¥₺₽₴₹₪₩₫]|(?<![^\W\d_])(?:eur|euros?|usd|dollars?|gbp|pounds?|kr|kronor|kroner|sek|nok|dkk|zł|pln|chf|kč|czk|lei|ron|ft|huf|лв|bgn|руб|rub|грн|uah|tl|try|円|元|원|đồng)(?![^\W\d_])", re.IGNORECASE)
# A reason that is no topic: what is said then (serve/languages/*.yaml), and what the colleague is to do.
SAID = {"human": "human", "loop": "loop", "asked_again": "loop", "stuck": "loop", "promise": "unsure", "invented": "unsure", "not_allowed": "unsure", "language": "language"}
NEXT = {"human": "Speak with the customer.", "loop": "Read what was asked; the assistant repeated itself.", "asked_again": "Do not ask again what the customer has given.",
        "stuck": "Take over; the assistant did not come to an answer.", "promise": "Decide on what the customer wants; nothing was promised.", "invented": "Answer with the right figures.",
        "not_allowed": "Decide on what the customer wants; company policy, as far as it can be seen, does not allow what the assistant was about to do.",
        "language": "Answer in the customer's language.", "fraud": "Check the account and the orders for misuse.", "hardship": "Agree on a way to pay.", "legal": "Pass on to whoever answers legal matters.",
        "threat": "Warn those concerned and follow the company's rule for threats.", "self_harm": "Speak with the customer at once; call for help where there is danger."}


class Guarded(NamedTuple):
    """What may be sent. `reason`: why it is not the model's reply, or None. A model that hands over itself keeps its words, and `reason` is None."""

    reply: Message
    reason: str | None


def policy_of(pack: Pack) -> dict:
    """What the guard must know of a company: its languages, what its replies look like when they promise or ask, and which tools make a promise true. Plain JSON."""
    company, trained = pack.company, list(pack.languages)

    def patterns(kind: str) -> list[str]:
        return [p for p in (pack.phrases[code]["recognise"].get(kind) for code in trained) if p]

    promises = {name: {"patterns": patterns(name), "tools": sorted(t["name"] for t in pack.tools.values() if _named(condition) & set(t["effects"]))} for name, condition in company.get("promises", {}).items()}
    slots = {slot: {"patterns": patterns(f"ask_{slot}"), "value": company.get("slots", {}).get(slot)} for slot in pack.slots()}
    identity = sorted({key for tool in pack.tools.values() for condition in tool["requires"].values() for key in _compared(condition) if pack.tools[tool["name"]]["parameters"].get(key) and not _told(pack, key)})
    deeds = {name: {"allowed": tool["allowed"], "parameters": sorted(tool["parameters"])} for name, tool in pack.tools.items() if tool["allowed"]}
    tells = {name: {key: path for key, path in tool["returns"].items() if _named(path) == {path}} for name, tool in pack.tools.items()}
    return {"languages": trained, "promises": promises, "slots": slots, "claims": pack.claims(), "arguments": {key: path for key, path in company["arguments"].items() if "." in path}, "identity": identity, "deeds": deeds, "tells": tells, "system": company["system"], "topics": list(company.get("must_escalate", TOPICS)), "p_person": P_PERSON}


def _named(expression: str) -> set[str]:
    """The `part.key` names that an expression of a pack speaks of."""
    return {f"{node.value.id}.{node.attr}" for node in ast.walk(ast.parse(str(expression), mode="eval")) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}


def _compared(expression: str) -> set[str]:
    """The arguments that an expression holds against something for being equal: what a tool knows its thing by."""
    sides = [side for node in ast.walk(ast.parse(str(expression), mode="eval")) if isinstance(node, ast.Compare) and all(isinstance(op, ast.Eq) for op in node.ops) for side in (node.left, *node.comparators)]
    return {side.attr for side in sides if isinstance(side, ast.Attribute) and isinstance(side.value, ast.Name) and side.value.id == "arguments"}


def _told(pack: Pack, key: str) -> bool:
    """Does a tool tell this value? Then it is a fact of the thing, a price say, and not its name."""
    return any(path == pack.company["arguments"].get(key) for tool in pack.tools.values() for path in tool["returns"].values())


def guarded(messages: list[Message], reply: Message, policy: dict) -> Guarded:
    """The reply itself, completed where it hands over, or what is sent in its place. `messages`: the conversation before it, tool results included."""
    now = turn(messages)
    language = languages().get(language_of(now if sum(map(str.isalpha, now)) >= ENOUGH else spoken(messages, "user"), policy["languages"]), languages()["en"])
    handing = TRANSFER in (call["function"]["name"] for call in reply.get("tool_calls") or [])
    asked_for = any(call["function"]["name"] == TRANSFER for m in messages for call in m.get("tool_calls") or [])
    taken_over = any(name == TRANSFER and succeeded(result) for name, _, result in calls(messages))
    reason = forbidden(messages, reply, policy)
    if not handing and not taken_over:
        reason = ("human" if asked_for and reply["content"] else why(messages, reply, policy, language)) or reason         # asked for before, it was handed over and nobody took it
    if handing and not reason:
        return Guarded(_completed(messages, reply, language.say["human"], policy), None)
    if reason:
        return Guarded(hand_over(messages, reason, language, policy), reason)
    if not taken_over and needs_person(now, language)["ai"] >= AI:          # at once: who asks that wants no order looked up first
        return Guarded({"role": "assistant", "content": language.say["ai"]}, "ai")
    return Guarded(reply, None)


def succeeded(result: dict) -> bool:
    """Did a tool do what it was called for, by its answer?"""
    return "error" not in result and result.get("ok", True) is not False


def forbidden(messages: list[Message], reply: Message, policy: dict) -> str | None:
    """What a reply must not do or say whoever takes over: a deed that policy does not allow, a promise without the deed, an amount that nothing holds, a number that is another one."""
    if not may_do(messages, reply, policy):
        return "not_allowed"
    if any(_is_empty(promise, reply, messages) for promise in policy["promises"].values()):
        return "promise"
    return "invented" if invented(messages, reply["content"], money=True) or untrue(messages, reply["content"], policy) else None


def why(messages: list[Message], reply: Message, policy: dict, language) -> str | None:
    """The reason for which a person must take over instead of this reply, or None. What the customer says comes first, then what the assistant would say."""
    said = turn(messages)
    concern = concern_of(said, language, policy)
    if language.code not in policy["languages"]:
        return concern if concern in AT_ONCE and cues(said, language)[concern] else "language"          # a person comes either way; how urgent it is takes one of that language's words for it
    if concern in AT_ONCE:
        return concern
    if not reply["content"]:           # it looks something up or does something before it speaks
        return "stuck" if waited(messages) >= MOST_CALLS or not reply.get("tool_calls") else None
    return concern or repeated(messages, reply["content"], policy)


def concern_of(said: str, language, policy: dict) -> str | None:
    """"human" or the topic for which a person must take over, by the turn as a whole, or by one sentence of it that is sure enough: what else is said must not hide it."""
    sentences = _sentence.split(said)
    parts = [(said, policy["p_person"]), *((sentence, SENTENCE) for sentence in [*sentences[:FIRST], *sentences[FIRST:][-LAST:]])]
    sure = [found for part, least in parts if part.strip() and p_person(found := needs_person(part, language)) >= least]
    names = ("human", *policy["topics"])
    return max(names, key=lambda name: max(probable.get(name, 0.0) for probable in sure)) if sure else None


def turn(messages: list[Message]) -> str:
    """What the customer has written since the assistant last spoke, a line a message."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant" and m["content"]), default=-1)
    return spoken(messages[last + 1:], "user")


def spoken(messages: list[Message], role: str) -> str:
    return "\n".join(m["content"] for m in messages if m["role"] == role and m["content"])


def waited(messages: list[Message]) -> int:
    """Tool calls since the customer last wrote."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    return sum(m["role"] == "tool" for m in messages[last + 1:])


def calls(messages: list[Message]) -> list[tuple[str, dict, dict]]:
    """(tool, arguments, result) of every call that was answered; what is no JSON object counts as an error."""
    made, open_calls = [], {}
    for message in messages:
        if message["role"] == "assistant":
            open_calls = {call.get("id"): call["function"] for call in message.get("tool_calls") or []}         # ids are a message's own: some models number each message's calls anew
        elif message["role"] == "tool" and message.get("tool_call_id") in open_calls:
            function = open_calls.pop(message["tool_call_id"])
            made.append((function["name"], as_object(function["arguments"]), as_object(message["content"])))
    return made


def as_object(text: object) -> dict:
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"error": "not an object"}


def _is_empty(promise: dict, reply: Message, messages: list[Message]) -> bool:
    """Is this promised here, with no tool call that made it true?"""
    done = any(name in promise["tools"] and succeeded(result) for name, _, result in calls(messages))
    return not done and any(re.search(pattern, reply["content"], re.IGNORECASE) for pattern in promise["patterns"])


def may_do(messages: list[Message], reply: Message, policy: dict) -> bool:
    """Does company policy allow what the reply would do, by what the conversation has shown? What was not shown allows nothing: a person can look."""
    for call in reply.get("tool_calls") or []:
        deed, arguments = policy["deeds"].get(call["function"]["name"]), as_object(call["function"]["arguments"])
        if deed and not (set(deed["parameters"]) <= set(arguments) and _holds(deed["allowed"], {**known_facts(messages, policy, arguments), "arguments": arguments})):
            return False
    return True


def _holds(condition: str, facts: dict[str, dict]) -> bool:
    """Does a condition hold by what is known? One that asks for more does not."""
    try:
        return bool(evaluate(condition, facts))
    except (NameNotDefined, AttributeDoesNotExist, TypeError):
        return False


def known_facts(messages: list[Message], policy: dict, arguments: dict) -> dict[str, dict]:
    """What holds, by part: the policy values of the system message, and what tools told of the same thing (another order's facts are none of this one's); the last word counts."""
    facts: dict[str, dict] = {}
    for path, value, asked in _told_facts(messages, policy):
        if not any(key in asked and key in arguments and str(asked[key]) != str(arguments[key]) for key in policy["identity"]):
            part, key = path.split(".")
            facts.setdefault(part, {})[key] = value
    return facts


def _told_facts(messages: list[Message], policy: dict) -> Iterator[tuple[str, object, dict]]:
    """(path, value, arguments of the call that told it) of everything that the system message and tools say."""
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    yield from ((path, value, {}) for path, value in _system_facts(policy["system"], system))
    for name, asked, result in calls(messages):
        if succeeded(result):
            yield from ((path, result[key], asked) for key, path in policy["tells"].get(name, {}).items() if key in result)


def claimed(text: str, claims: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(path, number) of what a reply says holds: policies, and facts of the thing that it speaks of. claims: expressions by path (a pack's `claims`), of whose groups one finds the number."""
    return [(path, next(filter(None, m.groups()))) for path, patterns in claims.items() for pattern in patterns for m in re.finditer(pattern, text, re.IGNORECASE)]


def untrue(messages: list[Message], text: str, policy: dict) -> list[str]:
    """What a reply claims with a number that is not the one which the system message or a tool has told for it: right elsewhere is wrong here.

    What a system message in other words than the pack's says cannot be told apart, and is not."""
    told: dict[str, set[str]] = {}
    done = [(policy["arguments"][key], value) for _, asked, result in calls(messages) if succeeded(result) for key, value in asked.items() if key in policy["arguments"]]         # a refund of 57 that was made is one of 57
    for path, value in (*((path, value) for path, value, _ in _told_facts(messages, policy)), *done):
        told.setdefault(path, set()).add(amount(str(value)))
    unread = {path for path in re.findall(r"<([a-z_]+\.[a-z_]+)>", policy["system"]) if path not in told}
    return [path for path, number in claimed(text, policy["claims"]) if path not in unread and amount(number) not in told.get(path, set())]


@functools.lru_cache(maxsize=64)
def _system_facts(template: str, system: str) -> list[tuple[str, object]]:
    found = _system_pattern(template).search(" ".join(system.split()))
    return [(path.replace("__", "."), int(value) if value.isdecimal() else value) for path, value in found.groupdict().items()] if found else []


@functools.cache
def _system_pattern(template: str) -> re.Pattern:
    """The system message's template as an expression that finds the values: <policy.return_days> is a group."""
    parts = re.split(r"<([a-z_]+(?:\.[a-z_]+)?)>", " ".join(template.split()))
    made = [re.escape(text) if place % 2 == 0 else f"(?P<{text.replace('.', '__')}>.{{1,{VALUE}}}?)" if "." in text and text not in parts[1:place:2] else f".{{1,{VALUE}}}?" for place, text in enumerate(parts)]
    return re.compile("".join(made) + ("" if parts[-1] else r"$"))


def invented(messages: list[Message], text: str, *, money: bool) -> list[str]:
    """The numbers of a reply that nothing before it holds: neither the system message, nor a tool, nor the customer. `money`: amounts of money alone."""
    before = " ".join(m["content"] or "" for m in messages if m["role"] != "assistant")
    known = {amount(each) for each in _number.findall(before)}
    return [m.group() for m in _number.finditer(text) if amount(m.group()) not in known and (not money or _money.search(text[max(0, m.start() - 8):m.end() + 9]))]


def amount(written: str) -> str:
    """A number without the signs between thousands, with a point before its cents, and without cents that are none: 1,250.00, 1.250, 1 250 and 1250 are one."""
    plain = re.sub(r"[.,'\u00a0\u202f ](?=\d{3}(?:\D|$))", "", written).replace(",", ".")
    return plain.rstrip("0").removesuffix(".") if "." in plain else plain


def repeated(messages: list[Message], text: str, policy: dict) -> str | None:
    """"loop" where a reply was said before already, "asked_again" where it asks for what the customer has given."""
    before = [m["content"] for m in messages if m["role"] == "assistant" and m["content"]]
    given = spoken(messages, "user")
    for slot in policy["slots"].values():
        asks = [any(re.search(pattern, each, re.IGNORECASE) for pattern in slot["patterns"]) for each in [*before, text]]
        if asks[-1] and any(asks[:-1]) and slot["value"] and re.search(slot["value"], given):
            return "asked_again"
    return "loop" if any(ratio(normal(text), normal(each)) >= ALIKE for each in before) else None


def hand_over(messages: list[Message], reason: str, language, policy: dict) -> Message:
    """The message that hands a conversation over: words in the customer's language, and the tool call."""
    words = language.say[SAID.get(reason, "self_harm" if reason == "self_harm" else "urgent")]
    return {"role": "assistant", "content": words, "tool_calls": [tool_call(TRANSFER, {"reason": reason, "summary": summary(messages, reason, policy)}, "call_handoff")]}


def _completed(messages: list[Message], reply: Message, words: str, policy: dict) -> Message:
    """The model's own handoff with words where it has none, and a summary with everything that a colleague needs."""
    made = []
    for call in reply["tool_calls"]:
        if call["function"]["name"] == TRANSFER:
            arguments = as_object(call["function"]["arguments"])
            reason = arguments["reason"] if isinstance(arguments.get("reason"), str) else "human"
            call = tool_call(TRANSFER, {"reason": reason, "summary": summary(messages, reason, policy)}, call["id"])
        made.append(call)
    return {**reply, "content": reply["content"] or words, "tool_calls": made}


def summary(messages: list[Message], reason: str, policy: dict) -> str:
    """What a colleague must know to go on without asking again: who it is, what was asked, what was tried, what is known, what comes next."""
    done = calls(messages)
    who = sorted({f"{key} {arguments[key]}" for _, arguments, result in done if succeeded(result) for key in policy["identity"] if key in arguments})
    asked = [line for line in spoken(messages, "user").splitlines() if line.strip()]
    tried = [f"{name}: {'ok' if succeeded(result) else result.get('error', 'failed')}" for name, _, result in done]
    known = [f"{key} {value}" for _, _, result in done for key, value in result.items() if key not in ("ok", "error")]
    return "\n".join([f"Identity: {', '.join(who) or 'not verified'}.", f"Asked: {' / '.join(asked)[-ASKED:]}", f"Tried: {', '.join(tried) or 'nothing yet'}.",
                      f"Known: {', '.join(known) or 'only what the customer wrote'}.", f"Next: {NEXT.get(reason, 'Take over the conversation.')}"])
