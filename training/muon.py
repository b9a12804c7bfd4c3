"""Muon on the weight matrices, AdamW on everything else (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

`torch.optim.Muon` multiplies in bfloat16, one matrix after another: on a CPU without such arithmetic that took as long as a small model's forward and back. Here
it is float32, and matrices of one shape go together; the steps are otherwise the same (tests/test_muon.py).
"""

from __future__ import annotations

from collections import defaultdict

import torch

MOMENTUM = 0.95
COEFFICIENTS = 3.4445, -4.7750, 2.0315          # of the Newton-Schulz iteration, as torch has them
ITERATIONS = 5


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """About U V^T of each matrix U S V^T of a stack (N, A, B), by Newton-Schulz iterations."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with Nesterov momentum, the learning rate matched to AdamW's (0.2 sqrt(max(A, B)))."""

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for shape, matrices in alike.items():
                wanted = []
                for matrix in matrices:
                    average = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                    average.lerp_(matrix.grad, 1 - MOMENTUM)
                    wanted.append(matrix.grad.lerp(average, MOMENTUM))
                for matrix, update in zip(matrices, orthogonal(torch.stack(wanted)), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon on a model's matrices but its embeddings, AdamW on the rest.

    In trials the small base's loss fell to the same level in about half the tokens that AdamW alone took.
    """

    def __init__(self, model: torch.nn.Module, lr: float, weight_decay: float):
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        self.parts = [Muon(matrices, 1.6 * lr, weight_decay), torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))]
        super().__init__([p for part in self.parts for group in part.param_groups for p in group["params"]], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state):
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
