"""Stage `sft`: learn from what agents wrote. LoRA over the base, loss on the agents' messages alone.

Sequences are packed on a GPU and stand in batches of like length on a CPU, where attention over packed rows costs more than padding.

    sft/adapter/    the LoRA adapter          sft/full/    all weights trained instead, as a candidate beside it
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from trl import SFTConfig, SFTTrainer

from data_prep.artifacts import StageError, require, stage_output
from data_prep.conversation import read_jsonl, write_json
from training.labelled import LossOfLabelled
from training.lora import adding
from training.models import in_batches_of_like_length, load_base, load_tokenizer, lora_config, save_trained, sequences, train, trainer_arguments
from training.packed import NAME


class CpuSFTTrainer(LossOfLabelled, SFTTrainer):
    """TRL's SFTTrainer with the cheaper loss."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


def run(config) -> None:
    source = require(config, "prepare", "sft") / "sft"
    tokenizer = load_tokenizer(config)
    rows = {split: [row for _, row in read_jsonl(source / f"{split}.jsonl") if is_wanted(row, config.sft.min_stars)] for split in ("train", "validation")}
    tokens = {split: sequences(tokenizer, rows[split], config.model.max_tokens) for split in rows}
    if not tokens["train"][0]:
        raise StageError(f"no reply in {source}/train.jsonl fits into model.max_tokens={config.model.max_tokens}")
    dropped = sum(count for _, count in tokens.values())
    datasets = {split: Dataset.from_list(made) if made else None for split, (made, _) in tokens.items()}
    with stage_output(config, "sft") as out:
        metrics = {}
        if config.sft.full_parameter:
            metrics["full"] = fit(config, load_base(config), tokenizer, datasets, Path(out) / "full", config.sft.full_trainer)
        model = adding(get_peft_model(load_base(config), lora_config(config.sft.lora)))
        metrics["lora"] = fit(config, model, tokenizer, datasets, Path(out) / "adapter", {})
        if not out.is_main:
            return
        write_json(out / "metrics.json", {**metrics, "replies": len(rows["train"]), "sequences": len(tokens["train"][0]), "dropped_too_long": dropped})
        beside = f", all weights {metrics['full']['validation_loss']:.3f}" if "full" in metrics else ""
        out.summary(f"{len(rows['train'])} replies in {len(tokens['train'][0])} sequences → validation loss {metrics['lora']['validation_loss']:.3f}{beside}; "
                    f"{dropped} replies too long", **metrics)


def is_wanted(row: dict, min_stars: float | None) -> bool:
    """Every reply; or, with `min_stars`, those alone that agents gave so many corrected stars."""
    return min_stars is None or (row["stars"] is not None and row["stars"] >= min_stars)


def fit(config, model, tokenizer, datasets: dict, folder: Path, changes) -> dict:
    """Train one model (adapter or all weights) and save it into `folder`; a finished one is not trained again."""
    done = folder / "metrics.json"
    if done.is_file():
        return json.loads(done.read_text())
    trainer = trainer_of(config, model, tokenizer, datasets, folder, changes)
    curve = train(trainer, folder)
    loss = trainer.evaluate()["eval_loss"] if datasets["validation"] else float("nan")
    save_trained(trainer, folder)
    metrics = {"train_loss": curve[-1]["loss"], "validation_loss": loss, "steps": trainer.state.global_step}
    if trainer.is_world_process_zero():
        write_json(done, metrics)
    return metrics


def trainer_of(config, model, tokenizer, datasets: dict, folder: Path, changes) -> SFTTrainer:
    """The trainer over tokenised conversations, packed or in batches of like length."""
    settings = {**config.hardware.sft_trainer, **config.sft.trainer, **changes}
    sampling = {"shuffle_dataset": True} if settings["packing"] else {"train_sampling_strategy": "sequential"}
    arguments = trainer_arguments(config, "sft", folder, SFTConfig, settings, max_length=config.model.max_tokens, completion_only_loss=False, eval_strategy="no", **sampling)
    if settings["packing"]:
        (model.get_base_model() if isinstance(model, PeftModel) else model).set_attn_implementation(NAME)
    else:
        rng = random.Random(config.seed)
        order = in_batches_of_like_length(rng.sample(datasets["train"].to_list(), len(datasets["train"])), arguments.train_batch_size * arguments.world_size, rng)
        datasets = {**datasets, "train": Dataset.from_list(order)}
    trainer_class = CpuSFTTrainer if config.hardware.trainer.use_cpu else SFTTrainer
    return trainer_class(model, arguments, train_dataset=datasets["train"], eval_dataset=datasets["validation"], processing_class=tokenizer)
