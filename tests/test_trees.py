"""A tree of sequences gives what its sequences give as rows: hidden states, log-probs, gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.toys import SMALL
from training.trees import collate, grow, in_batches

SEQUENCES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=9), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=40, pad_token_id=0, **SMALL)).eval()


@given(SEQUENCES)
def test_every_sequence_is_a_path_and_beginnings_are_shared(sequences):
    tree = grow(sequences)
    for sequence, path in zip(sequences, tree.leaves, strict=True):
        assert [tree.ids[place] for place in path] == sequence
        assert [tree.parents[place] for place in path] == [-1, *path[:-1]]
        assert [tree.positions[place] for place in path] == list(range(len(path)))
    beginnings = {tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)}
    assert len(tree.ids) == len(beginnings), "each beginning is there once"
    assert all(parent < place for place, parent in enumerate(tree.parents)), "ancestors come first"


@given(st.lists(SEQUENCES, min_size=1, max_size=4))
def test_hidden_states_are_those_of_the_rows(model, groups):
    trees = [grow(sequences) for sequences in groups]
    with torch.no_grad():
        together = model.model(**collate(trees, 0)).last_hidden_state
        for sequences, tree, states in zip(groups, trees, together, strict=True):
            for sequence, path in zip(sequences, tree.leaves, strict=True):
                alone = model.model(input_ids=torch.tensor([sequence])).last_hidden_state[0]
                assert torch.allclose(states[path], alone, atol=1e-5)


def test_gradients_are_those_of_the_rows(model):
    sequences = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 7]]

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.model.parameters()]

    tree = grow(sequences)
    packed = gradients(sum(model.model(**collate([tree], 0)).last_hidden_state[0, path[-1]].square().sum() for path in tree.leaves))
    rows = gradients(sum(model.model(input_ids=torch.tensor([s])).last_hidden_state[0, -1].square().sum() for s in sequences))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(packed, rows, strict=True))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(10, 60))
def test_batches_hold_every_tree_once_and_no_more_than_allowed(sizes, most):
    trees = [grow([list(range(size))]) for size in sizes]
    batches = list(in_batches(trees, most))
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert all(len(batch) == 1 or len(batch) * max(sizes[i] for i in batch) <= most for batch in batches)
