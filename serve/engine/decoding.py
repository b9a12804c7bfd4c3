"""Replies to a batch of prompts, token by token: a prompt is read once however many replies are drawn to it, and a reply that has ended costs nothing more.

transformers' `generate` reads a prompt again for each reply and goes on with all rows until the longest has ended: most replies of support are short, one in a batch is long.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

ENDED = 0.2          # share of a batch's rows that must have ended before the others are moved together


def pick(logits: torch.Tensor, temperature: float, top_p: float = 1.0) -> torch.Tensor:
    """One token a row (N,), of logits (N, V): the likeliest at temperature 0, else drawn, from the fewest tokens that have at least `top_p` between them (arXiv:1904.09751)."""
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits.float() / temperature).softmax(-1)
    return (nucleus(p, top_p) if top_p < 1 else p).multinomial(1)[:, 0]


def nucleus(p: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities (…, V) with 0 for all but the fewest tokens that have at least `top_p` between them (arXiv:1904.09751)."""
    ordered, where = p.sort(-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
    return torch.zeros_like(p).scatter(-1, where, ordered)


@torch.no_grad()
def decode(model, tokenizer, prompts: list[list[int]], max_new_tokens: int, choose: Callable[[torch.Tensor], torch.Tensor], each: int = 1, is_over: Callable[[list[int]], bool] = lambda said: False) -> list[list[list[int]]]:
    """To each prompt, as token ids, so many replies: token ids up to the end token, which is kept, or up to where `is_over` says so, or cut off.

    `model` is a decoder of transformers, or a PeftModel over one; what is random comes from torch's generator."""
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    mask = batch["attention_mask"]
    position = (mask.cumsum(1) - 1).clamp_min(0)
    out = model(**batch, position_ids=position, use_cache=True, logits_to_keep=1)
    cache, logits, mask, position = out.past_key_values, out.logits[:, -1].repeat_interleave(each, 0), mask.repeat_interleave(each, 0), position[:, -1:].repeat_interleave(each, 0)
    cache.reorder_cache(torch.arange(len(prompts), device=mask.device).repeat_interleave(each))
    said: list[list[int]] = [[] for _ in mask]
    rows = list(range(len(said)))                  # whose row each is
    over = set()
    for number in range(1, max_new_tokens + 1):
        drawn = choose(logits)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            if row not in over:
                said[row].append(token)
                if token == tokenizer.eos_token_id or is_over(said[row]):
                    over.add(row)
        left = [place for place, row in enumerate(rows) if row not in over]
        if not left or number == max_new_tokens:
            break
        if len(left) <= (1 - ENDED) * len(rows):
            kept = torch.tensor(left, device=mask.device)
            cache.reorder_cache(kept)
            mask, position, drawn, rows = mask[kept], position[kept], drawn[kept], [rows[place] for place in left]
        mask, position = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), position + 1
        logits = model(input_ids=drawn[:, None], attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True).logits[:, -1]
    return [said[k:k + each] for k in range(0, len(said), each)]
