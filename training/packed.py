"""Attention over packed rows, each sequence by itself: the values of a mask over the whole row, without looking at what it hides.

A packed row of 4,096 tokens that holds 21 conversations has 21 times as many places behind its mask as before it. `torch.nn.attention.varlen` is told where the
sequences begin instead (FlashAttention's kernel, arXiv:2307.08691); on a CPU, or in float32, they are gone through one by one. Registered with transformers under
`NAME`; TRL's collator of packed rows says where sequences begin.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "by_sequence"


def attend(module, query, key, value, attention_mask, scaling: float | None = None, sliding_window: int | None = None, cu_seq_lens_q: torch.Tensor | None = None, max_length_q: int = 0,
           softcap: float | None = None, s_aux: torch.Tensor | None = None, **_) -> tuple[torch.Tensor, None]:
    """(1, T, heads, d) from a packed row's queries (1, heads, T, d) and its keys and values, which may have fewer heads; its sequences begin and end at `cu_seq_lens_q` (N + 1,).

    Raises: NotImplementedError for a model whose attention has more to it than a window.
    """
    if cu_seq_lens_q is None or softcap is not None or s_aux is not None:
        raise NotImplementedError("attention by sequence is for packed rows of models without soft caps or sinks: set hardware.sft_trainer.packing=false for this one")
    q, k, v = (each[0].transpose(0, 1).to(value.dtype) for each in (query, key, value))          # under autocast norms and positions leave float32
    if query.is_cuda and value.dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn

        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        return varlen_attn(*(each.contiguous() for each in (q, k, v)), cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=window, enable_gqa=True)[None], None
    made = []
    for part in zip(*(each.split(cu_seq_lens_q.diff().tolist()) for each in (q, k, v)), strict=True):
        seen = torch.ones(len(part[0]), len(part[0]), dtype=torch.bool, device=query.device).tril().triu(1 - (sliding_window or len(part[0])))
        made.append(scaled_dot_product_attention(*(each.transpose(0, 1) for each in part), attn_mask=seen, scale=scaling, enable_gqa=True).transpose(0, 1))
    return torch.cat(made)[None], None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
