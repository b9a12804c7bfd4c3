"""Stage `dpo`: prefer what was preferred. The SFT adapter is the policy to train and, frozen, the reference.

Taking the raw base as the reference is a known trap: it punishes what SFT has learned. TRL clones the adapter of a
PeftModel as the reference, and saves it beside the policy; only the policy is kept here.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from data_prep.artifacts import StageError, stage_output
from data_prep.conversation import write_json
from training.models import in_batches_of_like_length, load_sft, load_tokenizer, preference_rows, train, trainer_arguments


def run(config) -> None:
    tokenizer = load_tokenizer(config)
    rows, too_long = preference_rows(config, tokenizer, "train")
    if not rows:
        raise StageError("there is no preference pair: collect ratings of two drafts for one prompt, or edits of replies (see the README, Your own data)")
    with stage_output(config, "dpo") as out:
        arguments = trainer_arguments(config, "dpo", Path(out), DPOConfig, max_length=None, train_sampling_strategy="sequential")
        order = in_batches_of_like_length(rows, arguments.per_device_train_batch_size, random.Random(config.seed))
        dataset = Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in order])
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


def chosen_fall(curve: list[dict]) -> float:
    """By how much the chosen replies' log-prob per sequence fell from the first to the last logged step (nats).

    DPO may lower both sides while their gap grows (Pal et al. 2024, arXiv 2402.13228): below the alarm it is normal.
    """
    logged = [entry["logps/chosen"] for entry in curve if "logps/chosen" in entry]
    return logged[0] - logged[-1] if len(logged) > 1 else 0.0
