"""Sequences that begin alike, packed into one: a tree of tokens, where each token sees its own ancestors and nothing else.

The replies of a conversation, the drafts beside them and the edits of them share all that was said before. As rows of their own
that history is read again for each of them (seven times on the sample archive); in a tree it is read once. A token's position
is its depth and the attention mask is "is an ancestor of", so hidden states, scores and gradients are those of the
rows (tests/test_trees.py). Also known as tree or prefix-tree attention (SpecInfer, arXiv:2305.09781).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Tree:
    """`ids`, `parents` and `positions` of T tokens, an ancestor before its descendants (a root's parent is -1);
    `leaves`: for each sequence, in order, the places of its tokens in the tree."""

    ids: list[int]
    parents: list[int]
    positions: list[int]
    leaves: list[list[int]]


def grow(sequences: Iterable[list[int]]) -> Tree:
    """Pack sequences of token ids, each a path from a root. Equal sequences end in the same place."""
    tree, children = Tree([], [], [], []), {}
    for sequence in sequences:
        place, path = -1, []
        for depth, token in enumerate(sequence):
            following = children.get((place, token))
            if following is None:
                following = children[place, token] = len(tree.ids)
                tree.ids.append(token)
                tree.parents.append(place)
                tree.positions.append(depth)
            place = following
            path.append(place)
        tree.leaves.append(path)
    return tree


def collate(trees: list[Tree], pad: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """What a decoder takes: input_ids and position_ids (B, T), attention_mask (B, 1, T, T) of booleans, padding on the right seeing itself."""
    width = max(len(tree.ids) for tree in trees)
    ids, positions = np.full((len(trees), width), pad), np.zeros((len(trees), width), dtype=np.int64)
    mask = np.zeros((len(trees), 1, width, width), dtype=bool)
    mask[:, 0, range(width), range(width)] = True
    for row, tree in enumerate(trees):
        size = len(tree.ids)
        ids[row, :size], positions[row, :size] = tree.ids, tree.positions
        seen = mask[row, 0]
        for place, parent in enumerate(tree.parents):
            if parent >= 0:
                seen[place, :place] = seen[parent, :place]
    return {"input_ids": torch.tensor(ids, device=device), "position_ids": torch.tensor(positions, device=device), "attention_mask": torch.tensor(mask, device=device)}


def in_batches(trees: list[Tree], max_tokens: int) -> Iterator[list[int]]:
    """Indices of trees of like size, no more than `max_tokens` in a batch, padding included; a larger tree comes alone."""
    batch: list[int] = []
    for index in sorted(range(len(trees)), key=lambda i: len(trees[i].ids)):
        if batch and (len(batch) + 1) * len(trees[index].ids) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
