"""What held-out conversations say about a model without any simulation: loss, and how often it gives the agent's reply.

For archives without a world. Agent sentences that occur word for word in training are reported apart from new ones,
because a team that picks canned sentences makes the first easy.
"""

from __future__ import annotations

import json
import random

import torch
from tqdm import tqdm

from data_prep.conversation import Message, truncate
from data_prep.hermes import parse_reply
from data_prep.statistics import wilson
from training.models import IGNORE, count_tokens, encode

DISTRACTORS = 9


def normal(message: dict) -> str:
    """A reply as one string: its text, its tools and their arguments in order."""
    calls = [f"{c['function']['name']} {json.dumps(_arguments(c), sort_keys=True)}" for c in message.get("tool_calls") or []]
    return " ".join([" ".join((message.get("content") or "").split()).lower(), *calls]).strip()


def _arguments(call: dict) -> object:
    try:
        return json.loads(call["function"]["arguments"])
    except ValueError:
        return call["function"]["arguments"]


def sentence_of(row: dict) -> str:
    return normal(row["completion"][0])


@torch.inference_mode()
def log_probs(model, tokenizer, prompts_and_replies: list[tuple[list[dict], dict]], max_tokens: int, batch_size: int = 32) -> list[tuple[float, int]]:
    """(sum of the reply's token log-probs in nats, its tokens) of each pair, stop token included."""
    encoded = []
    for prompt, reply in prompts_and_replies:
        cut = truncate([*prompt, reply], max_tokens, lambda m: count_tokens(tokenizer, m))
        encoded.append(encode(tokenizer, cut, {len(cut) - 1}))
    results: list[tuple[float, int]] = [(0.0, 0)] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
    for start in range(0, len(order), batch_size):
        batch = order[start:start + batch_size]
        width = max(len(encoded[i]["input_ids"]) for i in batch)
        ids = torch.tensor([encoded[i]["input_ids"] + [tokenizer.pad_token_id] * (width - len(encoded[i]["input_ids"])) for i in batch])
        labels = torch.tensor([encoded[i]["labels"] + [IGNORE] * (width - len(encoded[i]["labels"])) for i in batch])[:, 1:]
        mask = labels != IGNORE         # the head on the reply's positions alone: on a CPU those of the prompt would cost more than the model
        logits = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state[:, :-1][mask]).float()
        picked = torch.zeros(mask.shape).masked_scatter(mask, logits.log_softmax(-1).gather(1, labels[mask][:, None])[:, 0].cpu())
        for row, i in enumerate(batch):
            results[i] = (float(picked[row].sum()), int(mask[row].sum()))
    return results


def write_replies(engine, rows: list[dict], sampling, batch_size: int) -> list[Message]:
    """What an engine answers to each row's prompt."""
    written = []
    for start in tqdm(range(0, len(rows), batch_size), desc="write replies", unit="batch"):
        written += [parse_reply(c.text) for c in engine.generate([r["prompt"] for r in rows[start:start + batch_size]], sampling)]
    return written


def held_out(model, tokenizer, rows: list[dict], written: list[Message], known: set[str], max_tokens: int, seed: int) -> dict:
    """The table of one candidate on held-out rows: for all, for sentences seen in training, and for unseen ones.

    loss: nats per token of the agent's reply. exact: share of greedy replies (`written`) equal to the agent's (case and spaces aside).
    ranked: share of prompts where the agent's reply is more likely per token than 9 other agents' replies (chance .10).
    """
    if not rows:
        return {}
    rng = random.Random(seed)
    pool = [row["completion"][0] for row in rows]
    nll = log_probs(model, tokenizer, [(r["prompt"], r["completion"][0]) for r in rows], max_tokens)
    best = []
    for start in tqdm(range(0, len(rows), 64), desc="rank replies", unit="batch"):
        part = rows[start:start + 64]
        asked = [(r["prompt"], o) for r in part for o in _others(r, pool, rng)]
        scores = iter(log_probs(model, tokenizer, asked, max_tokens))
        for offset in range(len(part)):
            mine = nll[start + offset]
            rivals = [next(scores) for _ in range(DISTRACTORS)]
            best.append(all(mine[0] / mine[1] > other[0] / other[1] for other in rivals))
    exact = [normal(reply) == sentence_of(row) for reply, row in zip(written, rows, strict=True)]
    is_seen = [sentence_of(row) in known for row in rows]
    return {name: _line([i for i in range(len(rows)) if flag is None or is_seen[i] == flag], nll, exact, best)
            for name, flag in (("all", None), ("seen", True), ("unseen", False))}


def _others(row: dict, pool: list[dict], rng: random.Random) -> list[dict]:
    mine, others = sentence_of(row), []
    for _ in range(DISTRACTORS * 20):
        other = rng.choice(pool)
        if normal(other) != mine:
            others.append(other)
        if len(others) == DISTRACTORS:
            return others
    return (others * DISTRACTORS)[:DISTRACTORS] or [{"role": "assistant", "content": "?"}] * DISTRACTORS


def _line(places: list[int], nll: list, exact: list[bool], best: list[bool]) -> dict:
    tokens = sum(nll[i][1] for i in places)
    line = {"n": len(places), "loss": -sum(nll[i][0] for i in places) / tokens if tokens else None}
    for name, hits in (("exact", exact), ("ranked", best)):
        low, high = wilson(sum(hits[i] for i in places), len(places))
        line[name] = {"value": sum(hits[i] for i in places) / len(places) if places else None, "low": low, "high": high}
    return line
