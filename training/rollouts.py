"""What a policy does when it is let loose: conversations in the company pack's world, or single replies to the archive's prompts.

Sampling goes through one seam: `Local` or `Vllm`, called with prompts as token ids, a seed, and how many replies to draw to each, gives turns. A reply is kept as the tokens that were drawn, never as its text
tokenised again, for the two may differ and then the probabilities are of something that was not said.
"""

from __future__ import annotations

import random
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import torch

from data_prep.artifacts import StageError, require
from data_prep.company.pack import Pack
from data_prep.company.talk import Talk, draw_talk
from data_prep.conversation import Message, chat_message, read_jsonl, truncate
from data_prep.hermes import parse_reply
from serve.engine.decoding import decode, pick
from training.adapters import OneBase
from training.ensemble import leaf
from training.judgements import GOOD
from training.trees import Tree, grow

Written = tuple[list[Tree], list[list[list[int]]]]         # texts of the archive, and the places of their replies' tokens
PROBES = 128          # held-out prompts on which a policy's distance from SFT is measured


@dataclass
class Turn:
    """One reply of the policy, as tokens; without an end token at its end it was cut off."""

    prompt: list[int]
    reply: list[int]
    drawn: list[float] | None = None        # log-probs of the reply's tokens as the sampler says, where it is another program
    is_draft: bool = False                  # drawn beside the one before it, and not said


@dataclass
class Episode:
    """One conversation of the policy, its turns in order. `talk` is the world it took place in, for whoever may look at it: no reward model does."""

    turns: list[Turn] = field(default_factory=list)
    talk: Talk | None = None

    def tree(self) -> tuple[Tree, list[list[int]]]:
        """All turns as one tree, and the places of each reply's tokens."""
        tree = grow(turn.prompt + turn.reply for turn in self.turns)
        return tree, [path[-len(turn.reply):] for path, turn in zip(tree.leaves, self.turns, strict=True)]

    def places(self) -> list[list[int]]:
        """The numbers of the turns, those together that were drawn to one prompt."""
        found: list[list[int]] = []
        for number, turn in enumerate(self.turns):
            if not turn.is_draft:
                found.append([])
            found[-1].append(number)
        return found


class Local:
    """Sampling by transformers in this process, under the adapter as it is at that moment."""

    def __init__(self, model: OneBase, adapter: str, max_new_tokens: int, temperature: float = 1.0, batch_size: int = 128):
        self.model, self.adapter, self.max_new_tokens, self.temperature, self.batch_size = model, adapter, max_new_tokens, temperature, batch_size

    def refresh(self) -> None:
        """Nothing to do: the adapter that is trained is the one that speaks."""

    def __call__(self, prompts: list[list[int]], seed: int, each: int = 1) -> list[Turn]:
        tokenizer, at_once, made = self.model.tokenizer, max(1, self.batch_size // each), {}
        torch.manual_seed(seed)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))          # little of a batch is padding
        with self.model.using(self.adapter):
            for start in range(0, len(prompts), at_once):
                some = by_length[start:start + at_once]
                made |= zip(some, decode(self.model.model, tokenizer, [prompts[i] for i in some], self.max_new_tokens, lambda logits: pick(logits, self.temperature), each), strict=True)
        return [Turn(prompt, reply) for i, prompt in enumerate(prompts) for reply in made[i]]


class Vllm:
    """Sampling by a running vLLM, `vllm serve <base> --enable-lora` with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1: after each update the adapter is loaded anew.

    `folder` must be where the server reads the same files. An adapter of an earlier step answers as readily as the newest (nobody noticed
    for two months in verl#7495), so each comes under a name of its own, and the log-probs of what it drew are kept for `appraise` to compare. No seed is sent:
    one for a request would draw the same random numbers for each of its prompts.
    """

    def __init__(self, url: str, model: OneBase, adapter: str, folder: Path, max_new_tokens: int, temperature: float = 1.0):
        self.url, self.model, self.adapter, self.folder, self.max_new_tokens, self.temperature = url.rstrip("/"), model, adapter, folder.resolve(), max_new_tokens, temperature
        self.name: str | None = None

    def refresh(self) -> None:
        """Save the adapter as it is now and load it under a new name."""
        last, self.name = self.name, f"policy-{uuid.uuid4().hex[:12]}"
        self.model.save(self.adapter, self.folder / self.name)
        self._post("load_lora_adapter", {"lora_name": self.name, "lora_path": str(self.folder / self.name)})
        if last:
            self._post("unload_lora_adapter", {"lora_name": last})
            shutil.rmtree(self.folder / last)

    def __call__(self, prompts: list[list[int]], seed: int, each: int = 1) -> list[Turn]:
        end = self.model.tokenizer.eos_token_id
        made = self._post("completions", {"model": self.name, "prompt": prompts, "max_tokens": self.max_new_tokens, "temperature": self.temperature, "n": each,
                                          "logprobs": 0, "return_token_ids": True, "skip_special_tokens": False}).json()
        turns = []
        for prompt, choice in zip(repeated(prompts, each), sorted(made["choices"], key=lambda c: c["index"]), strict=True):
            reply, drawn = list(choice["token_ids"]), list(choice["logprobs"]["token_logprobs"])
            if choice["finish_reason"] == "stop" and (not reply or reply[-1] != end):
                reply.append(end)          # drawn, and left out of what is returned
            turns.append(Turn(prompt, reply, drawn))
        return turns

    def _post(self, path: str, body: dict) -> httpx.Response:
        """Raises: StageError where the server cannot be reached or refuses; its words, which may hold a prompt, are not repeated."""
        try:
            made = httpx.post(f"{self.url}/v1/{path}", json=body, timeout=600)
        except httpx.HTTPError as error:
            raise StageError(f"ppo.vllm={self.url} cannot be reached ({type(error).__name__}): is vllm serve running there?") from None
        if made.status_code != 200:
            raise StageError(f"ppo.vllm={self.url} answered {path} with {made.status_code}: start it with --enable-lora --max-lora-rank of at least sft.lora.r, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, "
                             f"and with {self.folder} readable to it")
        return made


def check_sampler(episodes: list[Episode], now: list[torch.Tensor], before: list[torch.Tensor], most: float) -> None:
    """Raises: StageError where another program drew the replies and gives them other probabilities than this one: than the policy as it is `now`, by more than `most` nats a token,
    or by twice as much as than the policy of the step `before`. One update moves a policy by less than other kernels round, so the second is what an adapter that is a step old shows in."""
    def apart(mine: list[torch.Tensor]) -> float:
        each = [abs(a - b) for episode, ours in zip(episodes, mine, strict=True) for turn, here in zip(episode.turns, ours.split([len(t.reply) for t in episode.turns]), strict=True)
                for a, b in zip(turn.drawn or [], here.tolist(), strict=False)]
        return sum(each) / max(1, len(each))

    far = apart(now)
    if far > most or apart(before) < far / 2:
        raise StageError(f"vLLM gives what it drew other probabilities than the trainer, by {far:.4f} nats a token (ppo.max_disagreement={most}; {apart(before):.4f} from the policy of the step before): "
                         "it speaks with an old adapter, another base or another dtype. Nothing was trained on it; restart vllm serve on this run's base")


def repeated(prompts: list[list[int]], each: int) -> list[list[int]]:
    return [prompt for prompt in prompts for _ in range(each)]


def prompt_ids(tokenizer, messages: list[Message], max_tokens: int, room: int) -> list[int]:
    """The token ids of a conversation, cut as in serving so that `room` tokens of reply fit behind it."""
    def ids(some: list[Message]) -> list[int]:
        return tokenizer.apply_chat_template(some, add_generation_prompt=True, return_dict=True)["input_ids"]

    plain = [chat_message(message) for message in messages]
    made = ids(plain)
    return made if len(made) <= max_tokens - room else ids(truncate(plain, max_tokens - room, lambda m: len(ids(m))))


def several(generate: Local | Vllm, prompts: list[list[int]], drafts: int, seed: int) -> list[list[Turn]]:
    """So many replies to each prompt, all but the first of them drafts."""
    made = iter(generate(prompts, seed, drafts))
    return [[replace(next(made), is_draft=number > 0) for number in range(drafts)] for _ in prompts]


def play(generate: Local | Vllm, tokenizer, pack: Pack, numbers: list[int], seed: int, drawn: int, drafts: int, max_replies: int, max_tokens: int, room: int) -> list[Episode]:
    """Conversations with the pack's customers in the wordings of training, all in step: replies, tool calls and what they return, until the customer is done.

    `seed` and a number make a customer, always the same; `drawn` is the seed of what is said to them. The first of the `drafts` drawn at each turn is said.
    """
    episodes = [Episode(talk=draw_talk(pack, number, "seen", seed)) for number in numbers]
    for turn in range(max_replies):
        running = [e for e in episodes if not e.talk.is_over]
        if not running:
            break
        prompts = [prompt_ids(tokenizer, e.talk.messages, max_tokens, room) for e in running]
        for episode, made in zip(running, several(generate, prompts, drafts, hash((drawn, turn))), strict=True):
            episode.turns += made
            episode.talk.take(parse_reply(tokenizer.decode(made[0].reply, skip_special_tokens=True)))
    return episodes


def answer(generate: Local | Vllm, tokenizer, rows: list[dict], numbers: list[int], seed: int, drawn: int, drafts: int, max_tokens: int, room: int) -> list[Episode]:
    """Replies to single prompts of the archive, for who has no world to talk in; `numbers` say which prompts of a seed, `drawn` seeds the replies."""
    chosen = [random.Random(f"{seed}-{number}").choice(rows) for number in numbers]
    prompts = [prompt_ids(tokenizer, row["prompt"], max_tokens, room) for row in chosen]
    return [Episode(turns) for turns in several(generate, prompts, drafts, drawn)]


def well_rated(config) -> list[dict]:
    """The archive's replies of so many corrected stars that they are fit to be said, as rows of SFT."""
    return [row for _, row in read_jsonl(require(config, "prepare", "this stage") / "sft/train.jsonl") if (row["stars"] or 0) >= GOOD]


def some_of(rows: list[dict], size: int, tokenizer, max_tokens: int, rng: random.Random) -> Iterator[Written]:
    """So many rows at a time, at random without end, as trees of one reply each and the places of its tokens."""
    misses = 0
    while rows and misses < 100:         # else none of them fits, and it would look for ever
        made = [leaf(tokenizer, row["prompt"], row["completion"][0], max_tokens) for row in rng.sample(rows, min(size, len(rows)))]
        trees = [(grow([ids]), length) for ids, length in filter(None, made)]
        misses = 0 if trees else misses + 1
        if trees:
            yield [tree for tree, _ in trees], [[tree.leaves[0][-length:]] for tree, length in trees]


def kl_from_sft(config, tokenizer, folder: Path) -> float:
    """How far a trained adapter has gone from SFT: the mean of log p - log p_sft over replies it draws to held-out prompts, in nats a reply."""
    prepared, room = require(config, "prepare", "this stage"), min(config.model.max_new_tokens, config.model.max_tokens // 2)
    rows = [row for split in ("validation", "train") for _, row in read_jsonl(prepared / f"prompts/{split}.jsonl")]
    model = OneBase(config, tokenizer)
    model.add("policy", folder)
    model.add("sft", require(config, "sft", "this stage") / "adapter")
    episodes = answer(Local(model, "policy", config.model.max_new_tokens), tokenizer, rows[:PROBES], list(range(PROBES)), config.seed, config.seed, 1, config.model.max_tokens, room)
    packed = [episode.tree() for episode in episodes]
    likely = [torch.cat(model.log_likelihoods(name, [tree for tree, _ in packed], [replies for _, replies in packed])) for name in ("policy", "sft")]
    return float((likely[0] - likely[1]).mean())
