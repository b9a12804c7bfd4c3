"""What an agent wrote that a model must not learn to write as it stands: claims of actions nobody recorded, promises of money, a person's name.

A model trained on "I've refunded you" without the refund learns to say so without one. A claim in the first person ("I have cancelled your order")
is backed by a tool call that succeeded earlier in the conversation and did something; a claim about money by one that moves money. A claim
that leaves open who did it ("your order is cancelled") may also be what a look-up showed: any successful call backs it. A promise of
money without a condition is backed by such a call too, earlier or in the message itself. A tool's kind is read off its name; a name that says
nothing gets the benefit of the doubt. The words of twelve languages are in `targets.yaml`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from data_prep.conversation import Message

CLAIM, PROMISE, PERSON = "claims an action nobody recorded", "promises money that nobody paid", "introduces a person"
NAME = r"(?P<name>(?-i:[^\W\d_a-z])[\w'-]*(?:\s+(?-i:[^\W\d_a-z])[\w'-]*){0,2})"
FEWEST_WORDS = 3         # of a rewritten message: less than that says nothing
SHORT = 4                # words of a note such as "Order cancelled."
_word = re.compile(r"\w+")
_sentence = re.compile(r"[^.!?\n]*(?:\.(?=\w)[^.!?\n]*)*[.!?\n]*")
_clause = re.compile(r"[^,;:–—]*[,;:–—]*")
_dashed_name = re.compile(rf"(?:\n|(?<=[.!?])\s)\s*[-–/]{{1,2}}\s?{NAME}\s*$")


def fit(prompt: list[Message], completion: Message) -> tuple[Message | None, str | None]:
    """(what to train on, how it was changed): the message itself and None, a rewritten one, or None where it is to be left out.

    An introduction is taken out, clause by clause, where something is left; everything else unfit is left out.
    """
    reason = unfit(prompt, completion)
    if reason is None:
        return completion, None
    if reason == PERSON and (rest := without_person(completion["content"])):
        return {**completion, "content": rest}, f"rewritten: {reason}"
    return None, f"excluded: {reason}"


def unfit(prompt: list[Message], completion: Message) -> str | None:
    """Why an agent's message must not be learned as it stands, or None. `prompt` is everything before it."""
    text = _straight(completion.get("content") or "")
    if not text.strip():
        return None
    backed = backing(prompt)
    about_to = {kind for call in completion.get("tool_calls") or () for kind in _kinds(call["function"]["name"])}
    for kind in claims(text):
        if kind == "promise" and "money" not in backed | about_to:
            return PROMISE
        if kind != "promise" and kind not in backed:
            return CLAIM
    return PERSON if without_person(text) != text else None


def backing(prompt: list[Message]) -> set[str]:
    """Which kinds of claim the successful tool calls of a conversation back: state, other, money."""
    backed, called = set(), {}
    for message in prompt:
        for call in message.get("tool_calls") or ():
            called[call["id"]] = call["function"]["name"]
        if message["role"] == "tool" and not failed(message["content"]):
            backed |= _kinds(called.get(message.get("tool_call_id"), ""))
    return backed


def _kinds(tool: str) -> set[str]:
    tools, name = _tables()[1], re.sub(r"(?<=[a-z])(?=[A-Z])", "_", tool).lower()
    if tools["looks"].search(name):
        return {"state"}
    moves_money = tools["money"].search(name) or not tools["acts"].search(name)
    return {"state", "other"} | ({"money"} if moves_money else set())


def failed(result: str) -> bool:
    """Does a tool's result say that nothing was done?"""
    try:
        value = json.loads(result)
    except ValueError:
        return result.strip().lower().startswith(("error", "failed", "failure", "exception"))
    if not isinstance(value, dict):
        return value is False
    status = str(value.get("status", "")).lower()
    return bool(value.get("error") or value.get("errors")) or value.get("ok") is False or value.get("success") is False or status in ("error", "failed", "failure", "rejected", "declined")


def claims(text: str) -> Iterator[str]:
    """The kinds of everything that a message claims or promises: money, other, state, promise.

    A language whose frame fits also says whether the words take it back: languages share words, so one objection is enough.
    """
    for sentence in _sentence.findall(_straight(text)):
        body = " ".join(sentence.strip(" .!?\n\t*-\"").split())
        clauses = [clause.strip(" ,;:–—") for clause in _clause.findall(body)]
        if sentence.rstrip().endswith("?"):
            clauses = clauses[:-2]           # the last one asks (behind it is an empty one)
        for clause in filter(None, clauses):
            fits = [fit for words in _tables()[0].values() for fit in _fits(words, clause, body)]
            for kind in dict.fromkeys(kind for kind, _ in fits):
                if not any(taken_back for other, taken_back in fits if other == kind):
                    yield kind


def _fits(words: dict, clause: str, sentence: str) -> Iterator[tuple[str, bool]]:
    """(kind, is it taken back?) of each frame of one language that fits a clause."""
    for kind in ("money", "other", "state", "promise"):
        found = words[kind].search(clause)
        if not found and kind == "state" and len(_word.findall(clause)) <= SHORT:
            found = words["note"].search(clause)
        if found:
            said = clause[:found.end()]
            yield kind, bool(words["denied"].search(said) or words["unless"].search(sentence if kind == "promise" else said))


def without_person(text: str) -> str:
    """The text without the clauses and sign-offs that give away a name; the same text where there are none; "" where too little is left."""
    straight, kept, cut = _straight(text), [], False
    end = min((found.start() for found in _signatures(straight)), default=len(straight))
    for sentence in _sentence.findall(straight[:end]):
        pieces = _clause.findall(sentence)[:-1]
        is_person = [_introduces(piece) and not _tables()[1]["machine"].search(sentence) for piece in pieces]
        rest = "".join(piece for piece, person in zip(pieces, is_person, strict=True) if not person)
        if any(is_person):
            cut = True
            rest = _mended(rest, sentence)
        kept.append(rest)
    if not cut and end == len(straight):
        return text
    made = re.sub(r"[ \t]{2,}", " ", "".join(kept)).strip(" ,;:–—\t\n")
    return made if len(_word.findall(made)) >= FEWEST_WORDS else ""


def _mended(rest: str, sentence: str) -> str:
    """A sentence that lost a clause: it begins with a capital, not with "and", and ends as it ended."""
    lead = "" if not sentence[:1].isspace() else sentence[0]
    ending = re.search(r"[.!?\n]*$", sentence).group()
    body = rest.strip(" ,;:–—\n.!?")
    body = _tables()[1]["joins"].sub("", body)
    return f"{lead}{body[:1].upper()}{body[1:]}{ending or ' '}" if _word.search(body) else "\n" * ("\n" in ending)


def _introduces(clause: str) -> bool:
    stripped = clause.strip(" \t\n*\"")
    return any(_is_name(found["name"], words["no_name"]) for words in _tables()[0].values() for frame in words["introduce"] for found in frame.finditer(stripped))


def _signatures(text: str) -> Iterator[re.Match]:
    for words in _tables()[0].values():
        yield from (found for found in words["sign_off"].finditer(text) if _is_name(found["name"], words["no_name"]))
    yield from (found for found in _dashed_name.finditer(text) if found["name"][0].isupper())


def _is_name(words: str, no_name: re.Pattern) -> bool:
    return words[0].isupper() and not no_name.fullmatch(words.split()[0].lower())


def _straight(text: str) -> str:
    return text.replace("’", "'").replace("\u00a0", " ")


@functools.cache
def _tables() -> tuple[dict[str, dict], dict[str, re.Pattern]]:
    """(the compiled frames by language, what holds for all languages)."""
    raw = yaml.safe_load((Path(__file__).parent / "targets.yaml").read_text(encoding="utf-8"))
    common = {name: re.compile(pattern, re.I) for name, pattern in {**raw["tools"], "machine": raw["machine"]}.items()}
    common["joins"] = re.compile(rf"^(?:{'|'.join(words['joins'] for words in raw['languages'].values())})\s+", re.I)
    return {language: _compiled(words) for language, words in raw["languages"].items()}, common


def _compiled(words: dict) -> dict:
    def claim(kind: str) -> re.Pattern:
        parts = [_filled(frame, done=words[kind]["done"], do=words["money"]["do"] if kind == "money" else r"(?!)") for frame in words["claim"]]
        return _any([*parts, rf"\b(?:{words[kind]['past']})\b"] if "past" in words[kind] else parts)

    settled = words["other"]["settled"]
    return {
        "money": claim("money"), "other": claim("other"), "unless": re.compile(words["unless"], re.I), "denied": re.compile(words["denied"], re.I),
        "state": _any([_filled(frame, settled=settled, impersonal=words["other"].get("impersonal", r"(?!)")) for frame in words["state"]]),
        "promise": _any([_filled(frame, do=words["money"]["do"]) for frame in words["promise"]]),
        "note": re.compile(rf"^(?:{settled})\b|\b(?:{settled})$", re.I),
        "introduce": [re.compile(_filled(frame, name=NAME), re.I) for frame in words["introduce"]],
        "sign_off": re.compile(rf"\b{words['sign_off']}[\s,.!:;]+{NAME}[^.!?]{{0,80}}\s*$", re.I),
        "no_name": re.compile(words["no_name"], re.I)}


def _filled(frame: str, **words: str) -> str:
    for name, pattern in words.items():
        frame = frame.replace("{" + name + "}", pattern)
    return frame


def _any(patterns: list[str]) -> re.Pattern:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.I)
