"""Replies drawn in a batch are those that transformers draws one by one, whatever else is in the batch."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BatchEncoding, LlamaConfig, LlamaForCausalLM

from serve.engine.decoding import decode, pick

END, PAD = 3, 0
PROMPTS = st.lists(st.lists(st.integers(4, 39), min_size=1, max_size=9), min_size=1, max_size=6)


def padded(batch, padding_side, return_tensors):
    rows = batch["input_ids"]
    width = max(map(len, rows))
    return BatchEncoding({"input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]), "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])})


TOKENIZER = SimpleNamespace(pad=padded, eos_token_id=END)


@pytest.fixture(scope="module")
def model():
    """A model of 40 words, of which the end is one that comes at different times."""
    torch.manual_seed(5)
    made = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=40, eos_token_id=END, pad_token_id=PAD,
                                        initializer_range=0.5)).eval()
    with torch.no_grad():
        made.lm_head.weight[END] *= 3
        made.lm_head.weight[PAD] = 0
    return made


def greedily(model, prompt: list[int], most: int) -> list[int]:
    reply = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=most, do_sample=False)[0, len(prompt):].tolist()
    return reply[: reply.index(END) + 1] if END in reply else reply


@settings(max_examples=25, deadline=None)
@given(PROMPTS, st.integers(1, 12), st.integers(1, 3))
def test_the_likeliest_replies_are_those_of_transformers(model, prompts, most, each):
    made = decode(model, TOKENIZER, prompts, most, lambda logits: pick(logits, 0), each)
    assert made == [[greedily(model, prompt, most)] * each for prompt in prompts]


def test_replies_end_at_different_times_and_where_they_are_said_to_be_over(model):
    prompts = [[token] for token in range(4, 34)]
    made = [reply for [reply] in decode(model, TOKENIZER, prompts, 12, lambda logits: pick(logits, 0))]
    assert len({len(reply) for reply in made if reply[-1] == END}) > 2, "or rows never leave the batch here"
    cut = decode(model, TOKENIZER, prompts, 12, lambda logits: pick(logits, 0), is_over=lambda said: len(said) == 4)
    assert [reply for [reply] in cut] == [reply[:4] for reply in made]


def test_several_replies_to_a_prompt_are_drawn_as_the_model_says(model):
    torch.manual_seed(0)
    prompt = [7, 12, 30]
    with torch.no_grad():
        expected = (model(torch.tensor([prompt])).logits[0, -1] / 20).softmax(-1)
    [made] = decode(model, TOKENIZER, [prompt], 1, lambda logits: pick(logits, 20.0), each=4000)
    seen = Counter(reply[0] for reply in made)
    for token, p in enumerate(expected.tolist()):
        assert abs(seen[token] / 4000 - p) < 4 * (p * (1 - p) / 4000) ** 0.5 + 1e-3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-30, 30), min_size=2, max_size=6, unique=True), st.floats(0.05, 1.0))
def test_what_is_drawn_is_of_the_fewest_tokens_with_enough_between_them(logits, top_p):
    torch.manual_seed(0)
    logits = torch.tensor(logits) / 10
    p = logits.softmax(-1)
    kept = torch.tensor([float(p[p > each].sum()) < top_p for each in p])
    expected = p * kept / (p * kept).sum()
    seen = Counter(pick(logits.repeat(3000, 1), 1.0, top_p).tolist())
    for token, share in enumerate(expected.tolist()):
        assert abs(seen[token] / 3000 - share) < 5 * (share * (1 - share) / 3000) ** 0.5 + 1e-3
