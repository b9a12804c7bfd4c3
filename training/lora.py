"""LoRA layers that add what the adapter says in the multiplication that computes it: the same values as PEFT's, with fewer passes over memory.

PEFT computes W x, then B A x, scales it and adds the two: four passes over each layer's output, in float32 where the adapter is kept so. Here the last three are one
`addmm`, in the base's dtype. tests/test_lora.py compares outputs and gradients.
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
        said = self.base_layer(x)
        down, up = (part[name].weight.to(said.dtype) for part in (self.lora_A, self.lora_B))
        low = torch.nn.functional.linear(x.to(said.dtype), down)
        return torch.addmm(said.flatten(0, -2), low.flatten(0, -2), up.t(), alpha=self.scaling[name]).view_as(said)


def adding(model: PeftModel) -> PeftModel:
    """The model with its LoRA layers made such ones."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = AddingLinear
    return model
