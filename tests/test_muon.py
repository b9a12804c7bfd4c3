"""Muon in float32 takes the steps of torch's."""

from __future__ import annotations

import torch

from training.muon import Muon, orthogonal


def test_steps_are_those_of_torch():
    torch.manual_seed(0)
    shapes = [(24, 24), (40, 16), (16, 40), (24, 24), (40, 16)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    begun = [matrix.detach().clone() for matrix in ours]
    optimizers = Muon(ours, 0.02, 0.1), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, first in zip(ours, theirs, begun, strict=True):
        moved = float((other - first).norm())
        assert moved > 0.05
        assert float((mine - other).detach().norm()) < 0.03 * moved, "but for bfloat16"


def test_what_is_orthogonal_stays_and_a_zero_is_no_error():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 12, 30)))
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    assert torch.equal(orthogonal(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))
