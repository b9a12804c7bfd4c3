"""Attention over packed rows, each sequence by itself: the values of a mask over the whole row, without looking at what it hides.

A packed row of 4,096 tokens that holds 21 conversations has 21 times as many places behind its mask as before it. `torch.nn.attention.varlen` is told where the
sequences begin instead (FlashAttention's kernel, arXiv:2307.08691); on a CPU they are gone through one by one. Registered with transformers under `NAME`.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "by_sequence"


def edges(position_ids: torch.Tensor) -> dict:
    """Where the sequences of one packed row begin and end, from its tokens' positions (1, T): as transformers names it for attention by sequence."""
    starts = (position_ids[0] == 0).nonzero()[:, 0].int()
    ends = torch.cat([starts, starts.new_tensor([position_ids.shape[1]])])
    return {"cu_seq_lens_q": ends, "max_length_q": int(ends.diff().max())}


def attend(module, query, key, value, attention_mask, scaling: float | None = None, cu_seq_lens_q: torch.Tensor | None = None, max_length_q: int = 0, **_) -> tuple[torch.Tensor, None]:
    """(1, T, heads, d) from a packed row's queries (1, heads, T, d) and its keys and values, which may have fewer heads."""
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    if not query.is_cuda:
        parts = zip(*(each.split(cu_seq_lens_q.diff().tolist()) for each in (q, k, v)), strict=True)
        return torch.cat([scaled_dot_product_attention(*(each.transpose(0, 1) for each in part), is_causal=True, scale=scaling, enable_gqa=True).transpose(0, 1) for part in parts])[None], None
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(*(each.contiguous() for each in (q, k, v)), cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=(-1, 0), enable_gqa=True)[None], None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
