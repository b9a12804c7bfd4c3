"""Stage `reward`: learn what ratings prefer. LoRA and a score head over the base, Bradley-Terry with margins.

    reward/adapter/ with its score head     reward/calibration.json     reward/metrics.json

The reward model starts from the SFT adapter, is centred, and after saving is
loaded again and must give the same scores: a score head that is silently not saved is a known trap (it happens with any
other task type than SEQ_CLS).
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from data_prep.artifacts import StageError, require, stage_output
from data_prep.conversation import write_json
from data_prep.statistics import wilson
from training.models import in_batches_of_like_length, load_base, load_tokenizer, preference_rows, train, trainer_arguments


def load_scorer(config, tokenizer):
    """The base with one score per sequence, read at the last real token."""
    model = load_base(config, AutoModelForSequenceClassification, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    torch.nn.init.zeros_(model.score.weight)
    return model


@torch.no_grad()
def score(model, tokenizer, conversations: list[list[dict]], batch_size: int = 32) -> torch.Tensor:
    """One reward per conversation, shape (N,), padded on the right so that padding cannot change a score."""
    model.eval()
    rewards = []
    for start in range(0, len(conversations), batch_size):
        ids = [tokenizer.apply_chat_template(c, return_dict=True)["input_ids"] for c in conversations[start:start + batch_size]]
        batch = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt").to(model.device)
        rewards.append(model(**batch).logits[:, 0].float().cpu())
    return torch.cat(rewards)


def run(config) -> None:
    tokenizer = load_tokenizer(config)
    rows, dropped = {}, 0
    for split in ("train", "validation", "test"):
        rows[split], too_long = preference_rows(config, tokenizer, split)
        dropped += too_long
    held_out = rows["validation"] + rows["test"]
    if not rows["train"]:
        raise StageError("there is no preference pair: collect ratings of two drafts for one prompt, or edits of replies (see the README, Your own data)")
    model = start_from_sft(config, tokenizer)
    with stage_output(config, "reward") as out:
        # One template for both sides, and the pair's own margin; nothing is cut here, preference_rows has done it.
        arguments = trainer_arguments(config, "reward", Path(out), RewardConfig, max_length=None, train_sampling_strategy="sequential")
        order = in_batches_of_like_length(rows["train"], arguments.per_device_train_batch_size, random.Random(config.seed))
        trainer = RewardTrainer(model, arguments, train_dataset=Dataset.from_list([{k: v for k, v in row.items() if k != "tokens"} for row in order]), processing_class=tokenizer)
        curve = train(trainer, Path(out))
        model.save_pretrained(out / "adapter")
        tokenizer.save_pretrained(out / "adapter")
        metrics = {"loss": curve[-1]["loss"], "pairs": len(rows["train"]), "dropped_too_long": dropped, "held_out_pairs": len(held_out)}
        if held_out:
            chosen = score(model, tokenizer, [r["prompt"] + r["chosen"] for r in held_out])
            rejected = score(model, tokenizer, [r["prompt"] + r["rejected"] for r in held_out])
            check_reload(config, tokenizer, out / "adapter", held_out[:16], chosen[:16])
            right = int((chosen > rejected).sum())
            low, high = wilson(right, len(held_out))
            both = torch.cat([chosen, rejected])
            metrics |= {"accuracy": {"value": right / len(held_out), "low": low, "high": high, "n": len(held_out)}}
            write_json(out / "calibration.json", {"mean": float(both.mean()), "std": float(both.std())})
        write_json(out / "metrics.json", metrics)
        accuracy = f"{metrics['accuracy']['value']:.2f} [{low:.2f}, {high:.2f}] of {len(held_out)} held-out pairs right" if held_out else "no held-out pair to judge it by"
        out.summary(f"{len(rows['train'])} pairs → {accuracy}; {dropped} too long", **metrics)


def start_from_sft(config, tokenizer) -> PeftModel:
    """A scorer under a LoRA of the SFT adapter's own shape and weights, so that scoring starts from what SFT can read.

    Raises: StageError where a weight of the SFT adapter finds no place.
    """
    folder = require(config, "sft", "reward") / "adapter"
    lora = LoraConfig.from_pretrained(folder)
    lora.task_type, lora.inference_mode = "SEQ_CLS", False
    model = get_peft_model(load_scorer(config, tokenizer), lora)
    own = {name.replace(".default.", "."): parameter for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, weight in load_peft_weights(str(folder), device="cpu").items():
            if name not in own or own[name].shape != weight.shape:
                raise StageError(f"{folder} has {name}, which the reward model lacks: was the adapter made for another model?")
            own[name].copy_(weight)
    return model


def check_reload(config, tokenizer, adapter: Path, rows: list[dict], expected: torch.Tensor) -> None:
    """Raises: StageError when the saved reward model scores differently from the trained one."""
    again = PeftModel.from_pretrained(load_scorer(config, tokenizer), adapter)
    scores = score(again, tokenizer, [r["prompt"] + r["chosen"] for r in rows])
    if not torch.allclose(scores, expected, atol=1e-4):
        raise StageError(f"the saved reward model scores differently after loading (by {(scores - expected).abs().max():.4f}): its score head was not saved; look at the adapter's task type")
