"""On a CPU, logits of labelled positions only: those of all the others cost more than a tiny model. Same values as the libraries'."""

from __future__ import annotations

import functools

import torch
from peft import PeftModel
from transformers.modeling_outputs import CausalLMOutput
from trl.trainer.utils import FusedCausalLMOutput

from training.models import IGNORE


class LossOfLabelled:
    """The trainers' loss, with logits of labelled positions only: on a CPU those of all the others cost more than the model.

    A mix-in before transformers' or TRL's trainer. No attention mask is passed: padding stands on the right, where causal
    attention never looks; packed sequences are kept apart by where they begin. Same value as theirs (tests/test_training.py).
    """

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        give_loss_of_labelled(model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = model(**{key: inputs[key] for key in ("input_ids", "position_ids", "labels", "cu_seq_lens_q", "max_length_q") if key in inputs}, num_items_in_batch=num_items_in_batch)["loss"]
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes         # that many processes' gradients are averaged, and each has been divided by the labels of all
        return (loss, {"loss": loss}) if return_outputs else loss


def give_loss_of_labelled(model) -> None:
    """Let the model's forward give this loss and nothing else. It is done there and not in the trainer, for a DistributedDataParallel around it averages only gradients of its forward."""
    network = model.get_base_model() if isinstance(model, PeftModel) else model

    @functools.wraps(type(network).forward)
    def forward(input_ids, labels, position_ids=None, num_items_in_batch=None, cu_seq_lens_q=None, max_length_q=None, **_):
        begin = {} if cu_seq_lens_q is None else {"cu_seq_lens_q": cu_seq_lens_q, "max_length_q": max_length_q}
        hidden, labels = network.model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **begin).last_hidden_state, labels[:, 1:]
        learned = labels != IGNORE
        total = torch.nn.functional.cross_entropy(network.lm_head(hidden[:, :-1][learned]).float(), labels[learned], reduction="sum")
        return CausalLMOutput(loss=total / (learned.sum() if num_items_in_batch is None else num_items_in_batch))

    network.forward = forward


def add_head_of_labelled(model, outputs: tuple[str, ...] = ("log_probs",)) -> None:
    """TRL's `add_fused_lm_head` for a CPU, with the same values: TRL scores every position there, this one the labelled alone.

    A position costs as much as a third of a tiny model, and a pair shares a long prompt. tests/test_training.py compares the two.
    """
    plain_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(*args, fused_lm_head=False, labels=None, **kwargs):
        if not fused_lm_head:
            return plain_forward(*args, **kwargs) if labels is None else plain_forward(*args, labels=labels, **kwargs)
        hidden, labels = model.base_model(*args, **kwargs).last_hidden_state[:, :-1], labels[:, 1:]
        mask = labels != IGNORE
        logits = model.lm_head(hidden[mask]).float()
        log_probs = logits.log_softmax(-1)
        wanted = labels[mask]

        def spread(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        said = log_probs.gather(-1, wanted[:, None])[:, 0]
        return FusedCausalLMOutput(loss=-said.mean(), log_probs=spread(said), entropy=spread(-(log_probs.exp() * log_probs).sum(-1)),
                                   mean_logits=spread(logits.detach().mean(-1)), is_top1=spread(logits.argmax(-1) == wanted), label_mask=mask)

    model.forward = forward
