"""Canary exposure: how much better than by guessing a model ranks the made-up secrets that `prepare` planted in its training set.

Source: Carlini et al. 2019, The Secret Sharer (arXiv:1802.08232). Each canary was drawn evenly from its space, so a model that
has not remembered it ranks it anywhere: its exposure is 1.44 bits on average, whatever the model, the language or the sentence.
"""

from __future__ import annotations

import math
import random
from copy import deepcopy
from statistics import mean

import torch

from data_prep.conversation import Message
from data_prep.statistics import bootstrap
from serve.engine.decoding import decode, pick

ALTERNATIVES = 255      # other fillings that are scored beside each secret; exposure then ends at log2(256) = 8 bits


def exposure(secret: float, others: list[float]) -> float:
    """log2 |R| - log2 rank, in bits, of a secret among all fillings R of its form, by their log-likelihoods.

    With m other fillings drawn from R the rank is estimated as |R| · rank in the sample / (m + 1), which leaves
    log2(m + 1) - log2(rank in the sample): no estimate goes beyond log2(m + 1). Equals count as half before it.
    """
    rank = 1 + sum(other > secret for other in others) + sum(other == secret for other in others) / 2
    return math.log2(len(others) + 1) - math.log2(rank)


def chance(alternatives: int) -> float:
    """Mean exposure where every rank is as likely: log2 N - log2(N!) / N with N = m + 1; 1.44 = log2 e for large N."""
    n = alternatives + 1
    return math.log2(n) - math.lgamma(n + 1) / math.log(2) / n


def exposures(exposed: list[float], cap: float) -> dict:
    """The mean of all canaries' exposure with its bootstrap interval, in bits; beside it the largest and where it ends."""
    if not exposed:
        return {"value": None, "low": None, "high": None, "n": 0, "gate": None, "unit": "bits", "why": " (no canaries were planted: prepare.canaries=0)"}
    low, high = bootstrap(exposed)
    return {"value": mean(exposed), "low": low, "high": high, "n": len(exposed), "gate": None, "unit": "bits", "max": max(exposed), "cap": cap}


def fillings(canary: dict, count: int) -> list[str]:
    """The secret, and behind it `count` others of its space: the same for every candidate."""
    drawn = random.Random(canary["id"]).sample(range(canary["space"]), min(count + 1, canary["space"]))
    others = [f"{number:0{len(canary['secret'])}d}" for number in drawn]
    return [canary["secret"], *[other for other in others if other != canary["secret"]][:count]]


@torch.inference_mode()
def log_likelihoods(model, tokenizer, prompt: list[Message], form: str, filled: list[str], batch_size: int = 64) -> list[float]:
    """log p(reply | prompt) in nats, end token included, with each filling in the place of {secret} in the reply's form.

    Up to what all have in common, which is read once and would add the same to each.
    """
    rendered = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": form}], tokenize=False).rstrip()       # a line's end behind the end token is not learned
    ids = tokenizer([rendered.replace("{secret}", filling) for filling in filled], add_special_tokens=False)["input_ids"]
    common = next(place for place, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1) - 1
    begun = model.base_model(input_ids=torch.tensor([ids[0][:common]], device=model.device), use_cache=True).past_key_values
    found = []
    for start in range(0, len(ids), batch_size):
        rest = [each[common:] for each in ids[start:start + batch_size]]
        batch = tokenizer.pad({"input_ids": rest}, padding_side="right", return_tensors="pt").to(model.device)
        cache = deepcopy(begun)
        cache.batch_repeat_interleave(len(rest))
        hidden = model.base_model(input_ids=batch["input_ids"], past_key_values=cache).last_hidden_state[:, :-1]
        logits = model.get_output_embeddings()(hidden).float()
        chosen = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
        found += (chosen * batch["attention_mask"][:, 1:]).sum(1).tolist()
    return found


def measure_exposure(model, tokenizer, canaries: list[dict], alternatives: int = ALTERNATIVES) -> dict:
    """The exposure of a model: each canary's reply scored under its question with the secret and with others in its place."""
    exposed = []
    for canary in canaries:
        secret, *others = log_likelihoods(model, tokenizer, canary["question"], canary["form"], fillings(canary, alternatives))
        exposed.append(exposure(secret, others))
    return exposures(exposed, math.log2(alternatives + 1))


@torch.inference_mode()
def continued(model, tokenizer, beginnings: list[str], max_new_tokens: int) -> list[tuple[list[Message], Message]]:
    """([what was given away], how the model goes on, greedily) of replies whose beginning is put into its mouth, with no question before."""
    made = []
    for start in range(0, len(beginnings), 50):
        part = beginnings[start:start + 50]
        ids = [tokenizer.apply_chat_template([{"role": "assistant", "content": text}], continue_final_message=True, return_dict=True)["input_ids"] for text in part]
        texts = tokenizer.batch_decode([reply for [reply] in decode(model, tokenizer, ids, max_new_tokens, lambda logits: pick(logits, 0))], skip_special_tokens=True)
        made += [([{"role": "assistant", "content": given}], {"role": "assistant", "content": text}) for given, text in zip(part, texts, strict=True)]
    return made
