"""What a base from scratch practises on: drills of copying and of topics, and conversations that give each decision away.

Messages in, messages out, nothing else: the stage `pretrain` turns them into tokens and trains on them.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable

DRILLED = 14            # things at most in one exercise of copying

_number = re.compile(r"\d+")
_word = re.compile(r"[^\W\d_]{3,}")
_named = re.compile(r"(\w+(?: \w+)?): (\d+)")      # "Late fee: 12" in a system message


def beginning(reply: dict) -> str:
    """A decision given away in short: the tool's name, the first three words."""
    calls = [call["function"]["name"] for call in reply.get("tool_calls") or []]
    return " ".join(calls + reply["content"].split()[:3])


def whole(reply: dict) -> str:
    """A decision given away in full."""
    calls = [f"{call['function']['name']} {call['function']['arguments']}" for call in reply.get("tool_calls") or []]
    return " ".join([reply["content"], *calls]).strip()


def fitted(reply: dict, values: dict, context: str) -> dict | None:
    """Somebody else's reply with this conversation's values in its tool arguments; None where a number of it is not known here."""
    calls = []
    for call in reply.get("tool_calls") or []:
        arguments = {key: values.get(key, value) for key, value in (_json(call["function"]["arguments"]) or {}).items()}
        calls.append({**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}})
    text = reply["content"] + " ".join(call["function"]["arguments"] for call in calls)
    known = set(_number.findall(context))
    return {**reply, "tool_calls": calls} if set(_number.findall(text)) <= known else None


def renumbered(messages: list[dict], rng: random.Random) -> list[dict]:
    """The conversation with every number but 0 replaced by a random one of as many digits, the same one everywhere in it.

    A base that has met only the archive's few policy values would recite them; this one has to read them.
    """
    names: dict[str, str] = {}

    def other(match: re.Match) -> str:
        digits = match.group()
        if digits not in names:
            names[digits] = digits if digits == "0" else str(rng.randint(10 ** (len(digits) - 1), 10 ** len(digits) - 1))
        return names[digits]

    return [json.loads(_number.sub(other, json.dumps(_without_ids(message), ensure_ascii=False))) for message in messages]


def renamed(messages: list[dict], words: list[str], rng: random.Random) -> list[dict]:
    """The conversation with the words of identifiers (tool arguments of words and digits, like an address) replaced by invented ones.

    Else the base would write some address that it has often met, instead of the one it was told.
    """
    text, others = json.dumps(messages, ensure_ascii=False), {}
    for value in argument_values(messages).values():
        if isinstance(value, str) and is_identifier(value) and len(re.findall(re.escape(value), text, re.IGNORECASE)) > 1:
            others |= {word.lower(): invented(words, rng) for word in dict.fromkeys(_word.findall(value))}
    if not others:
        return messages

    def other(match: re.Match) -> str:
        word = others[match.group().lower()]
        return word.lower() if match.group().islower() else word

    known = re.compile(rf"\b(?:{'|'.join(others)})\b", re.IGNORECASE)

    def changed(call: dict) -> dict:
        said = _json(call["function"]["arguments"])
        if not isinstance(said, dict):
            return call
        arguments = {key: known.sub(other, value) if isinstance(value, str) else value for key, value in said.items()}
        return {**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}}

    return [{**message, "content": known.sub(other, message["content"]), **({"tool_calls": [changed(call) for call in message["tool_calls"]]} if message.get("tool_calls") else {})} for message in messages]


def is_identifier(value: str) -> bool:
    """Words and digits, like an address."""
    return bool(_word.search(value) and _number.search(value))


def invented(words: list[str], rng: random.Random) -> str:
    """A word that is none: the first half of one and the second half of another."""
    one, two = rng.choice(words), rng.choice(words)
    return (one[: (len(one) + 1) // 2] + two[len(two) // 2:]).capitalize()


def _without_ids(message: dict) -> dict:
    calls = [{"type": "function", "function": call["function"]} for call in message.get("tool_calls") or []]
    return {"role": message["role"], "content": message["content"], **({"tool_calls": calls} if calls else {})}


def argument_values(messages: list[dict]) -> dict:
    """The arguments of all tool calls of a conversation by name."""
    return {k: v for m in messages for call in m.get("tool_calls") or [] for k, v in (_json(call["function"]["arguments"]) or {}).items()}


def elsewhere(message: dict, values: dict, said: list[str], rng: random.Random) -> dict:
    """A customer's message whose number, some tool's argument, stands among another customer's words: where it is must not matter."""
    numbers = _number.findall(message["content"])
    if message["role"] != "user" or len(numbers) != 1 or numbers[0] not in values.values() or rng.random() < 0.5:
        return message
    words = [word for word in rng.choice(said).split() if not _number.search(word)]
    place = rng.randint(0, len(words))
    return {**message, "content": " ".join([*words[:place], numbers[0] + rng.choice(["", "", ".", "!"]), *words[place:]])}


def results_otherwise(message: dict, seen: dict[str, list], rng: random.Random) -> dict:
    """A tool's result with some of its words and truth values replaced by what the same key holds elsewhere: not to be guessed from the topic."""
    result = _json(message["content"]) if message["role"] == "tool" else None
    if not isinstance(result, dict):
        return message
    other = {key: rng.choice(seen[key]) if isinstance(value, str | bool) and key in seen and rng.random() < 0.5 else value for key, value in result.items()}
    return {**message, "content": json.dumps(other, ensure_ascii=False, separators=(",", ":"))}


def words_of_results(conversations: Iterable[list[dict]]) -> dict[str, list]:
    """The different values that the keys of tool results hold, where they are few."""
    seen = defaultdict(dict)
    for message in itertools.chain.from_iterable(conversations):
        result = _json(message["content"]) if message["role"] == "tool" else None
        for key, value in result.items() if isinstance(result, dict) else ():
            if isinstance(value, str | bool | int):
                seen[key][value] = None
    return {key: list(values) for key, values in seen.items() if len(values) <= 20}


def readable(messages: list[dict], topic: str | None) -> dict[str, str]:
    """What can be read out of a conversation so far: the topic the helpdesk filed it under, and the values
    in system message, tool results and calls."""
    values = {}
    for message in messages:
        if message["role"] == "system":
            values |= dict(_named.findall(message["content"]))
        if message["role"] == "tool":
            result = _json(message["content"])
            values |= {k: _text(v) for k, v in result.items()} if isinstance(result, dict) else {}
        for call in message.get("tool_calls") or []:
            values |= {k: str(v) for k, v in (_json(call["function"]["arguments"]) or {}).items()}
    return values | ({"topic": topic} if topic else {})


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def conditional(decision: str, alternative: str, known: dict[str, str], results: dict[str, list], rng: random.Random) -> str | None:
    """A decision given away on a condition: "if status is open: … else: …", true or not, so that what a tool found must be looked at."""
    choices = [key for key in known if len(results.get(key, ())) > 1]
    if not choices:
        return None
    key = rng.choice(choices)
    values = [_text(value) for value in results[key]]
    if rng.random() < 0.5:
        return f"if {key} is {known[key]}: {decision}; else: {alternative}"
    return f"if {key} is {rng.choice([value for value in values if value != known[key]])}: {alternative}; else: {decision}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def practise(messages: list[dict], topic: str | None, others: list[dict], results: dict[str, list], swapped: float, rng: random.Random) -> list[dict]:
    """One practice conversation: a decision given away before each reply, some of them another's; in between, things to read out."""
    values = argument_values(messages)
    practice, context, answer_is_void = [], "", False
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            if rng.random() < 0.7 and (known := readable(messages[:index], topic)):
                key = "topic" if topic and rng.random() < 0.3 else rng.choice(sorted(known))
                practice += [{"role": "system", "content": f"Read: {key}"}, {"role": "assistant", "content": known[key]}]
            tries = (fitted(rng.choice(others), values, context) for _ in range(6))
            other = next((t for t in tries if t is not None), None)
            swap = other is not None and rng.random() < swapped
            reply, answer_is_void = (other, bool(message.get("tool_calls"))) if swap else (message, False)
            hint = rng.choice([whole, beginning])(reply)
            if other is not None and rng.random() < 0.5:
                hint = conditional(beginning(reply), beginning(message if reply is other else other), readable(messages[:index], None), results, rng) or hint
            practice += [{"role": "system", "content": f"Next: {hint}"}, reply]
        elif message["role"] != "tool" or not answer_is_void:
            practice.append(message)
        context += " " + message["content"]
    return practice


def drill(words: list[str], progress: float, rng: random.Random) -> list[dict]:
    """A short exercise of copying alone: say again what was said, or what stands behind a word.

    Words, names and numbers are random, so nothing can be guessed and nearly every token teaches copying; in real
    conversations only one in twenty does, and copying would come late. Numbers are few at first (`progress` goes from 0
    to 1): among digits, which repeat, it is hard to see what is to be copied.
    """
    numbers = min(0.6, 0.2 + 0.6 * progress)

    def thing() -> str:
        return number(rng) if rng.random() < numbers else invented(words, rng) if rng.random() < 0.5 else rng.choice(words)

    count = rng.randint(5, DRILLED)
    if rng.random() < 2 / 3:
        said = answer = " ".join(thing() for _ in range(count))
        asked = "Repeat"
    else:
        keys = rng.sample(words, count)
        values = [number(rng) if rng.random() < 0.6 else f"{invented(words, rng)} {number(rng)}" for _ in keys]
        place = rng.randrange(count)
        said, asked, answer = " ".join(f"{k}: {v}" for k, v in zip(keys, values, strict=True)), f"Read: {keys[place]}", values[place]
    return [{"role": "user", "content": said}, {"role": "system", "content": asked}, {"role": "assistant", "content": answer}]


def number(rng: random.Random) -> str:
    return str(rng.randint(0, 10 ** rng.choice([1, 2, 3, 5]) - 1))


def dictated(conversations: Iterable[list[dict]]) -> list[list[dict]]:
    """Tool calls that say again a name which customers said, each after those messages alone that hold what it says, and its tool given away.

    Whole conversations hold few of them: too few to learn from that a name is copied, and not one of those that are known is written.
    """
    found = []
    for messages in conversations:
        for place, message in enumerate(messages):
            values = [str(value) for value in argument_values([message]).values()]
            heard = [m for m in messages[:place] if m["role"] == "user" and any(value.lower() in m["content"].lower() for value in values)]
            said = " ".join(m["content"] for m in heard).lower()
            if any(is_identifier(value) for value in values) and all(value.lower() in said for value in values):
                found.append([*heard, {"role": "system", "content": f"Next: {beginning(message)}"}, message])
    return found


def exams(conversations: Iterable[list[dict]], words: list[str], rng: random.Random) -> dict[str, list[tuple[list[dict], dict]]]:
    """What a base has to be able to do, with numbers and names that nobody has met, as (messages, the right answer): `reads` a value out of a conversation, `copies` what customers dictate into a call."""
    found, conversations = {"reads": [], "copies": []}, list(conversations)
    for messages in conversations:
        messages = renumbered(renamed(messages, words, rng), rng)
        end = max((place for place, message in enumerate(messages) if message["role"] == "assistant"), default=0)
        if known := readable(messages[:end], None):
            key = rng.choice(sorted(known))
            found["reads"].append(([*messages[:end], {"role": "system", "content": f"Read: {key}"}], {"role": "assistant", "content": known[key]}))
    for messages in dictated(conversations):
        *said, call = renumbered(renamed(messages, words, rng), rng)
        found["copies"].append((said, call))
    return found


def is_right(said: dict, answer: dict) -> bool:
    """Whether a reply calls with the answer's arguments, or says its text where that calls nothing."""
    return argument_values([said]) == argument_values([answer]) if answer.get("tool_calls") else said["content"] == answer["content"]


def topic_drill(messages: list[dict], topic: str, rng: random.Random) -> list[dict]:
    """What a conversation is about, read from some of the customer's first words, often in no order.

    A small model learns whole sentences by heart and then fails on new ones made of the same words; so it is shown words.
    """
    words = " ".join(m["content"] for m in itertools.takewhile(lambda m: m["role"] != "assistant", messages) if m["role"] == "user").split()
    lost = rng.choice([0, 0.2, 0.4])
    words = [word for word in words if rng.random() >= lost] or words
    if rng.random() < 0.5:
        rng.shuffle(words)
    return [{"role": "user", "content": " ".join(words)}, {"role": "system", "content": "Read: topic"}, {"role": "assistant", "content": topic}]
