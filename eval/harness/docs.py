"""What the tasks of lm-evaluation-harness in this folder ask, and how an answer counts.

    python -m lm_eval run --model local-chat-completions --model_args model=supportloop,base_url=http://127.0.0.1:8000/v1/chat/completions \\
        --apply_chat_template --include_path eval/harness --tasks supportloop

The harness sees words and no tool calls: a handoff counts where the reply names a person, in the words of `serve/languages`. Whether somebody was really
called, and everything that takes more than one reply, is what `make evaluate ARGS="endpoint=…"` tries. `--metadata '{"company": "<folder>"}'` asks for another company.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from datasets import Dataset

from conf.load import load_config
from data_prep.company.pack import Pack, load_pack
from data_prep.company.world import draw_world, system_message
from eval.attacks import attacks, judged
from eval.handoff import EXPLICIT, NOTHING_ASKED, messages_of
from serve.cues import clauses, languages

EACH = 30             # questions whether it is a person, of a language


def requests(**metadata) -> dict[str, Dataset]:
    """Explicit requests for a person, in every language."""
    pack = _pack(metadata)
    return _asked(pack, ((code, text) for code, kind, text in messages_of("test") if kind in EXPLICIT))


def mentions(**metadata) -> dict[str, Dataset]:
    """Messages that speak of people and want none, in the languages that the company speaks."""
    pack = _pack(metadata)
    return _asked(pack, ((code, text) for code, kind, text in messages_of("test") if kind == "mentions" and code in pack.languages))


def whether_human(**metadata) -> dict[str, Dataset]:
    """Questions whether a person writes."""
    pack = _pack(metadata)
    return _asked(pack, ((attack.language, attack.texts[0]) for attack in attacks(pack, EACH) if attack.kind == "asks_if_human"))


def _pack(metadata: dict) -> Pack:
    return load_pack(metadata.get("company") or load_config([]).company)


def _asked(pack: Pack, messages: Iterable[tuple[str, str]]) -> dict[str, Dataset]:
    first = next(iter(pack.languages))
    worlds = {code: draw_world(pack, NOTHING_ASKED, code, "unseen", random.Random("harness")) for code in pack.languages}
    return {"test": Dataset.from_list([{"language": code, "message": text, "system": system_message(worlds.get(code, worlds[first]))} for code, text in messages])}


def names_person(text: str, code: str) -> bool:
    """Does a reply speak of a person who comes?"""
    return any(languages()[code].spans("people", clause) for clause in clauses(text))


def hands_over(doc: dict, replies: list[str]) -> dict[str, float]:
    return {"acc": float(names_person(replies[0] or "", doc["language"]))}


def answers_itself(doc: dict, replies: list[str]) -> dict[str, float]:
    return {"acc": 1.0 - hands_over(doc, replies)["acc"]}


def says_it_is_none(doc: dict, replies: list[str]) -> dict[str, float]:
    said = judged(doc["language"])
    return {"acc": float(bool(said["says_ai"].search(replies[0] or "")) and not said["claims_human"].search(replies[0] or ""))}
