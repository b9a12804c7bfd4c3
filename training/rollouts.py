"""What a policy does when it is let loose: conversations in the company pack's world, or single replies to the archive's prompts.

Sampling goes through one seam, `Generate`: token ids in, token ids out. A reply is kept as the tokens that were drawn, never as its text
tokenised again, for the two may differ and then the probabilities are of something that was not said.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from data_prep.company.pack import Pack
from data_prep.company.talk import Talk, draw_talk
from data_prep.conversation import Message, chat_message, truncate
from data_prep.hermes import parse_reply
from training.adapters import OneBase
from training.trees import Tree, grow

Generate = Callable[[list[list[int]], int], list[list[int]]]        # prompts and a seed → replies, with their end token where one came


@dataclass
class Turn:
    """One reply of the policy, as tokens; without an end token at its end it was cut off."""

    prompt: list[int]
    reply: list[int]


@dataclass
class Episode:
    """One conversation of the policy, its turns in order. `talk` is the world it took place in, for whoever may look at it: no reward model does."""

    turns: list[Turn] = field(default_factory=list)
    talk: Talk | None = None

    def tree(self) -> tuple[Tree, list[list[int]]]:
        """All turns as one tree, and the places of each reply's tokens."""
        tree = grow(turn.prompt + turn.reply for turn in self.turns)
        return tree, [path[-len(turn.reply):] for path, turn in zip(tree.leaves, self.turns, strict=True)]


def with_transformers(model: OneBase, adapter: str, max_new_tokens: int, temperature: float, batch_size: int) -> Generate:
    """Sampling by transformers in this process, under the adapter as it is at that moment."""
    tokenizer = model.tokenizer

    @torch.no_grad()
    def generate(prompts: list[list[int]], seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        replies: list[list[int]] = []
        with model.using(adapter):
            for start in range(0, len(prompts), batch_size):
                batch = tokenizer.pad({"input_ids": prompts[start:start + batch_size]}, padding_side="left", return_tensors="pt").to(model.device)
                made = model.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=True, temperature=temperature, top_k=0, top_p=1.0,
                                            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
                replies += [up_to_end(row, tokenizer.eos_token_id) for row in made[:, batch["input_ids"].shape[1]:].tolist()]
        return replies

    return generate


def up_to_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def prompt_ids(tokenizer, messages: list[Message], max_tokens: int, room: int) -> list[int]:
    """The token ids of a conversation, cut as in serving so that `room` tokens of reply fit behind it."""
    def ids(some: list[Message]) -> list[int]:
        return tokenizer.apply_chat_template(some, add_generation_prompt=True, return_dict=True)["input_ids"]

    plain = [chat_message(message) for message in messages]
    made = ids(plain)
    return made if len(made) <= max_tokens - room else ids(truncate(plain, max_tokens - room, lambda m: len(ids(m))))


def play(generate: Generate, tokenizer, pack: Pack, numbers: list[int], seed: int, max_replies: int, max_tokens: int, room: int) -> list[Episode]:
    """Conversations with the pack's customers in the wordings of training, all in step: replies, tool calls and what they return, until the customer is done."""
    episodes = [Episode(talk=draw_talk(pack, number, "seen", seed)) for number in numbers]
    for turn in range(max_replies):
        running = [e for e in episodes if not e.talk.is_over]
        if not running:
            break
        prompts = [prompt_ids(tokenizer, e.talk.messages, max_tokens, room) for e in running]
        for episode, prompt, reply in zip(running, prompts, generate(prompts, hash((seed, numbers[0], turn))), strict=True):
            episode.turns.append(Turn(prompt, reply))
            episode.talk.take(parse_reply(tokenizer.decode(reply, skip_special_tokens=True)))
    return episodes


def answer(generate: Generate, tokenizer, rows: list[dict], numbers: list[int], seed: int, max_tokens: int, room: int) -> list[Episode]:
    """Single replies to prompts of the archive, for who has no world to talk in; `numbers` say which draw of a seed."""
    drawn = [random.Random(f"{seed}-{number}").choice(rows) for number in numbers]
    prompts = [prompt_ids(tokenizer, row["prompt"], max_tokens, room) for row in drawn]
    return [Episode([Turn(prompt, reply)]) for prompt, reply in zip(prompts, generate(prompts, hash((seed, numbers[0]))), strict=True)]
