"""LoRA layers that add at once are PEFT's, in what they say and in what they learn."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from training.lora import AddingLinear, adding, is_less_to_merge

TINY = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=50)
IDS = torch.arange(24).view(2, 12)
MORE = torch.arange(96).view(8, 12) % 50


def made(dtype: torch.dtype = torch.float32, r: int = 4, **lora):
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(TINY).to(dtype), LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=3 * r, target_modules="all-linear", **lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def learned(model, autocast: bool = False, ids: torch.Tensor = IDS) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids).logits.float()
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "autocast", "apart"), [(torch.float32, False, 1e-5), (torch.bfloat16, True, 5e-2), (torch.bfloat16, False, 5e-2)])
def test_outputs_and_gradients_are_pefts(dtype, autocast, apart):
    plain = made(dtype)
    ours = adding(copy.deepcopy(plain))
    assert sum(type(module) is AddingLinear for module in ours.modules()) == 14, "seven in each of two layers"
    (logits, gradients), (expected, theirs) = learned(ours, autocast), learned(plain, autocast)
    assert torch.allclose(logits, expected, atol=apart * float(expected.abs().max()))
    assert set(gradients) == set(theirs)
    assert all(torch.allclose(gradients[name], theirs[name], atol=apart * float(theirs[name].abs().max())) for name in theirs)


@pytest.mark.parametrize("rank", [4, 24])
def test_where_the_weights_are_merged_too(rank):
    assert is_less_to_merge(MORE.numel(), 48, 32, rank, learning=True) is (rank == 24), "one of them is merged, the other not"
    plain = made(r=rank)
    ours = adding(copy.deepcopy(plain))
    (logits, gradients), (expected, theirs) = learned(ours, ids=MORE), learned(plain, ids=MORE)
    assert torch.allclose(logits, expected, atol=1e-5 * float(expected.abs().max()))
    assert set(gradients) == set(theirs)
    assert all(torch.allclose(gradients[name], theirs[name], atol=1e-5 * float(theirs[name].abs().max())) for name in theirs)


def test_merging_takes_fewer_multiplications_where_it_is_chosen():
    """Counted by torch itself, forward and back: of a tiny model's layer under half its rank, and of an 8B model's."""
    from torch.utils.flop_counter import FlopCounterMode

    def counted(tokens: int, size_out: int, size_in: int, rank: int, merged: bool) -> int:
        with torch.device("meta"):
            x, weight = torch.ones(tokens, size_in, requires_grad=True), torch.ones(size_out, size_in)
            down, up = torch.ones(rank, size_in, requires_grad=True), torch.ones(size_out, rank, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            (x @ (weight + up @ down).t() if merged else x @ weight.t() + x @ down.t() @ up.t()).sum().backward()
        return counter.get_total_flops()

    for shape in ((8000, 128, 128, 64), (8000, 384, 128, 64), (8000, 4096, 4096, 64), (8, 128, 128, 64), (100, 384, 128, 8)):
        assert is_less_to_merge(*shape, learning=True) == (counted(*shape, merged=True) < counted(*shape, merged=False)), shape


@torch.no_grad()
def test_of_several_adapters_the_active_one_speaks_and_none_where_they_are_off():
    def said(model) -> torch.Tensor:
        return model(input_ids=IDS).logits

    model = adding(made())
    first = said(model)
    model.add_adapter("other", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    model.set_adapter("other")
    with model.disable_adapter():
        base = said(model)
    assert torch.allclose(said(model), base, atol=1e-6), "an untrained adapter says nothing"
    assert not torch.allclose(first, base, atol=1e-3)
    model.set_adapter("default")
    assert torch.allclose(said(model), first, atol=1e-6)
    assert torch.allclose(said(model.merge_and_unload()), first, atol=1e-4)


def test_with_dropout_it_learns_as_pefts_does():
    plain = made(lora_dropout=0.5)
    ours = adding(copy.deepcopy(plain))
    torch.manual_seed(1)
    mine, _ = learned(ours.train())
    torch.manual_seed(1)
    assert torch.equal(mine, learned(plain.train())[0])
    assert torch.allclose(learned(ours.eval())[0], learned(plain.eval())[0], atol=1e-5)
