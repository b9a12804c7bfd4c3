"""LoRA layers in fewer multiplications or passes over memory: the same values as PEFT's.

PEFT computes W x, then B A x, scales it and adds the two: four passes over each layer's output, in float32 where the adapter is kept so. Here the last three are one
`addmm`, in the base's dtype. And where a layer is so small, or the tokens so many, that W x + B A x takes more multiplications than (W + B A) x, as in a tiny model
with adapters of half its width, W + B A is made first. tests/test_lora.py compares outputs and gradients.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.lora import Linear


class AddingLinear(Linear):
    """PEFT's LoRA layer over a Linear; where anything but one plain adapter is active (dropout in training, DoRA, several, merged, none) it is PEFT's own."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        if name not in self.lora_A or self.disable_adapters or self.merged or name in self.lora_variant or args or any(value is not None for value in kwargs.values()) \
                or (self.training and not isinstance(self.lora_dropout[name], torch.nn.Identity)) or self.lora_B[name].bias is not None:
            return super().forward(x, *args, **kwargs)
        weight, scale = self.base_layer.weight, self.scaling[name]
        down, up = (part[name].weight.to(weight.dtype) for part in (self.lora_A, self.lora_B))
        is_exact = isinstance(self.base_layer, torch.nn.Linear) and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)         # in bf16 W would swallow a small B A
        if is_exact and is_less_to_merge(x.numel() // x.shape[-1], *weight.shape, len(down), torch.is_grad_enabled()):
            return torch.nn.functional.linear(x, torch.addmm(weight, up, down, alpha=scale), self.base_layer.bias)
        said = self.base_layer(x)
        low = torch.nn.functional.linear(x.to(said.dtype), down.to(said.dtype))
        return torch.addmm(said.flatten(0, -2), low.flatten(0, -2), up.to(said.dtype).t(), alpha=scale).view_as(said)


def is_less_to_merge(tokens: int, size_out: int, size_in: int, rank: int, learning: bool) -> bool:
    """Whether (W + B A) x takes fewer multiplications than W x + B A x: forward, and where it learns, the gradients of x, A and B.

    Both multiply W with each token, forward and back. Apart, A and B come to that, three times where they learn; merged, W's gradient does, and B A with its gradients.
    """
    sizes = size_in * size_out
    apart = tokens * rank * (size_in + size_out)
    return 3 * apart > tokens * sizes + 3 * rank * sizes if learning else apart > rank * sizes


def adding(model: PeftModel) -> PeftModel:
    """The model with its LoRA layers made such ones."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = AddingLinear
    return model
