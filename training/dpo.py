"""Stage `dpo`: prefer what was preferred. The SFT adapter is the policy to train and, frozen, the reference.

Taking the raw base as the reference is a known trap: it punishes what SFT has learned. TRL clones the adapter of a
PeftModel as the reference, and saves it beside the policy; only the policy is kept here.
"""

from __future__ import annotations

import functools
import random
import shutil
from pathlib import Path

import torch
import trl.trainer.dpo_trainer
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from data_prep.artifacts import StageError, stage_output
from data_prep.conversation import write_json
from training.models import IGNORE, in_batches_of_like_length, load_sft, load_tokenizer, preference_rows, train, trainer_arguments


def run(config) -> None:
    tokenizer = load_tokenizer(config)
    rows, too_long = preference_rows(config, tokenizer, "train")
    if not rows:
        raise StageError("there is no preference pair: collect ratings of two drafts for one prompt, or edits of replies (see the README, Your own data)")
    with stage_output(config, "dpo") as out:
        arguments = trainer_arguments(config, "dpo", Path(out), DPOConfig, max_length=None, train_sampling_strategy="sequential")
        order = in_batches_of_like_length(rows, arguments.per_device_train_batch_size, random.Random(config.seed))
        dataset = Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in order])
        if config.hardware.trainer.use_cpu:
            trl.trainer.dpo_trainer.add_fused_lm_head = add_head_of_labelled
        trainer = DPOTrainer(load_sft(config, is_trainable=True), args=arguments, train_dataset=dataset, processing_class=tokenizer)
        curve = train(trainer, Path(out))
        trainer.save_model(str(out / "adapter"))
        shutil.rmtree(out / "adapter" / "ref", ignore_errors=True)
        fall = chosen_fall(curve)
        if fall > config.dpo.max_chosen_drop:
            print(f"warning: the chosen replies became less likely by {fall:.2f} nats per reply since the start. Likely cause: too high a learning rate or "
                  "too low a beta. Next: dpo.trainer.learning_rate lower, or more of the sft loss in dpo.trainer.loss_weights", flush=True)
        accuracy = curve[-1].get("rewards/accuracies", float("nan"))
        metrics = {"pairs": len(rows), "dropped_too_long": too_long, "loss": curve[-1]["loss"], "train_accuracy": accuracy, "chosen_fall": fall}
        write_json(out / "metrics.json", metrics)
        out.summary(f"{len(rows)} pairs → {accuracy:.2f} of training pairs preferred, chosen log-probs {'fell' if fall > 0 else 'rose'} by {abs(fall):.2f}; {too_long} too long", **metrics)


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


def chosen_fall(curve: list[dict]) -> float:
    """By how much the chosen replies' log-prob per sequence fell from the first to the last logged step (nats).

    DPO may lower both sides while their gap grows (Pal et al. 2024, arXiv 2402.13228): below the alarm it is normal.
    """
    logged = [entry["logps/chosen"] for entry in curve if "logps/chosen" in entry]
    return logged[0] - logged[-1] if len(logged) > 1 else 0.0
