"""The reward that a policy is trained against: several reward models on one base, standardised, their mean less their spread."""

from __future__ import annotations

from pathlib import Path

import torch

from data_prep.conversation import Message, truncate
from training.adapters import OneBase
from training.models import count_tokens
from training.trees import Tree


def leaf(tokenizer, prompt: list[Message], reply: Message, max_tokens: int, asked: int | None = None) -> tuple[list[int], int] | None:
    """(a conversation up to a reply as token ids, the reply's end token last; how many of them are the reply's), cut as in serving.

    None where the reply alone is too long. `asked`: the prompt's tokens, where they have been counted.
    """
    ids = _to_the_end(tokenizer, [*prompt, reply])
    length = len(ids) - (count_tokens(tokenizer, prompt, add_generation_prompt=True) if asked is None else asked)
    if len(ids) > max_tokens:
        ids = _to_the_end(tokenizer, truncate([*prompt, reply], max_tokens, lambda m: count_tokens(tokenizer, m)))
    return (ids, length) if len(ids) <= max_tokens else None


def _to_the_end(tokenizer, messages: list[Message]) -> list[int]:
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    return ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]


def adapter_name(folder: str) -> str:
    """members/0 → reward_0; held_out stays."""
    return folder.replace("members/", "reward_")


def load_rewards(config, tokenizer, folder: Path, model: OneBase | None = None) -> OneBase:
    """The base with every member of the ensemble (reward_0 …) and the held-out model, or these added to a base that is there."""
    model = model or OneBase(config, tokenizer)
    for name in [*(f"members/{k}" for k in range(config.reward.members)), "held_out"]:
        model.add(adapter_name(name), folder / name)
    return model


def members(model: OneBase) -> list[str]:
    return sorted(name for name in model.heads if name.startswith("reward_"))


def combined(scores: torch.Tensor, calibration: dict) -> torch.Tensor:
    """The ensemble's reward of each reply, (N,), from its members' scores (members, N).

    Pessimism where the members disagree keeps a policy from places where none of them knows (mean less a multiple of the
    spread, arXiv:2310.02743).
    """
    mean, std = (torch.tensor([one[key] for one in calibration["members"]])[:, None] for key in ("mean", "std"))
    standard = (scores - mean) / std
    return standard.mean(0) - calibration["spread_penalty"] * standard.std(0, correction=0)


def rewards(model: OneBase, calibration: dict, trees: list[Tree], replies: list[list[list[int]]]) -> torch.Tensor:
    """The ensemble's reward of each reply of the trees, flat, in standard deviations of held-out replies."""
    return combined(torch.stack([torch.cat(model.scores(name, trees, replies)) for name in members(model)]), calibration)


def held_out_rewards(model: OneBase, calibration: dict, trees: list[Tree], replies: list[list[list[int]]]) -> torch.Tensor:
    """What the model says that no policy was trained against: a reward that rises without this one is exploited."""
    spread = calibration["held_out"]
    return (torch.cat(model.scores("held_out", trees, replies)) - spread["mean"]) / spread["std"]
