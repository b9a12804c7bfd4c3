"""Stage `kto`: learn from single judgements, good or bad, where there are no pairs (arXiv:2402.01306). Not among the default stages.

A reply is good from `good` corrected stars on and bad up to `bad`, between them it says too little; a thumb says it outright. Whose judgement
counts is `by`: agents judge a reply, customers their chat and its outcome, and mark a correct "no" down. The rarer side weighs more,
so that good and bad count the same.
"""

from __future__ import annotations

import random
from pathlib import Path

import trl.trainer.kto_trainer
from trl import KTOConfig, KTOTrainer

from data_prep.artifacts import StageError, require, stage_output
from data_prep.conversation import read_jsonl, truncate, write_json
from training.group import shared_dataset
from training.labelled import add_head_of_labelled
from training.lora import adding
from training.models import count_tokens, in_batches_of_like_length, load_sft, load_tokenizer, plain, save_trained, train, trainer_arguments
from training.rollouts import kl_from_sft


def label_of(row: dict, settings) -> bool | None:
    """Good, bad, or None where it says too little or is not to count."""
    if row["by"] not in settings.by:
        return None
    if "label" in row:
        return row["label"]
    stars = row["rating"] - row.get("offset", 0.0)
    return True if stars >= settings.good else False if stars <= settings.bad else None


def run(config) -> None:
    tokenizer, settings = load_tokenizer(config), config.kto
    judged = [(row, label) for _, row in read_jsonl(require(config, "prepare", "kto") / "unpaired/train.jsonl") if (label := label_of(row, settings)) is not None]
    if len({label for _, label in judged}) < 2:
        raise StageError(f"of {len(judged)} judgements by {list(settings.by)} none is {'bad' if judged and judged[0][1] else 'good'}: KTO needs both; collect thumbs or ratings (see the README, Your own data)")
    if settings.max_rows is not None and len(judged) > settings.max_rows:
        judged = random.Random(config.seed).sample(judged, settings.max_rows)
    rows, dropped = [], 0
    for row, label in judged:
        cut = truncate(row["prompt"] + row["completion"], config.model.max_tokens, lambda m: count_tokens(tokenizer, m))
        tokens = count_tokens(tokenizer, cut)
        if tokens > config.model.max_tokens:
            dropped += 1
        else:
            rows.append({"prompt": [plain(m) for m in cut[:-1]], "completion": [plain(cut[-1])], "label": label, "tokens": tokens})
    good = sum(row["label"] for row in rows)
    if good in (0, len(rows)):
        raise StageError(f"of {len(rows)} judgements that are left ({dropped} too long for model.max_tokens={config.model.max_tokens}) none is {'bad' if good else 'good'}: KTO needs both; "
                         "set kto.max_rows or model.max_tokens higher")
    with stage_output(config, "kto") as out:
        arguments = trainer_arguments(config, "kto", Path(out), KTOConfig, max_length=None, train_sampling_strategy="sequential",
                                      desirable_weight=max(1.0, len(rows) / max(1, good) - 1), undesirable_weight=max(1.0, good / max(1, len(rows) - good)))
        order = in_batches_of_like_length(rows, arguments.train_batch_size * arguments.world_size, random.Random(config.seed))
        dataset = shared_dataset([{key: row[key] for key in ("prompt", "completion", "label")} for row in order], Path(out))
        if config.hardware.trainer.use_cpu:
            trl.trainer.kto_trainer.add_fused_lm_head = add_head_of_labelled
        trainer = KTOTrainer(adding(load_sft(config)), args=arguments, train_dataset=dataset, processing_class=tokenizer)
        curve = train(trainer, Path(out))
        save_trained(trainer, out / "adapter")
        if not out.is_main:
            return
        metrics = {"good": good, "bad": len(rows) - good, "dropped_too_long": dropped, "loss": curve[-1]["loss"], "kl": kl_from_sft(config, tokenizer, out / "adapter")}
        write_json(out / "metrics.json", metrics)
        out.summary(f"{good} good and {len(rows) - good} bad replies → loss {curve[-1]['loss']:.3f}, {metrics['kl']:.2f} nats a reply from sft; {dropped} too long", **metrics)
