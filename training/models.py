"""Tokenizer, base model, adapters, and how rows become tokens: what the trainers, evaluation and export share."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import torch
import transformers
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, TrainerCallback
from trl.chat_template_utils import is_chat_template_stop_token_trained

from data_prep.artifacts import ROOT, StageError, process_count, process_rank, require, stage_dir
from data_prep.conversation import read_jsonl, truncate, write_json

IGNORE = -100          # the label of a token that is not learned


def quieten(config) -> None:
    """Third-party chatter off, threads and seed set: called once in each stage's process."""
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|peft|accelerate|datasets|huggingface_hub)\b.*")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("accelerate", "datasets", "trl", "peft", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if config.hardware.threads:
        torch.set_num_threads(max(1, config.hardware.threads // process_count()))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    transformers.set_seed(config.seed)


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


def base_path(config) -> str:
    """Where the base model lies: this run's own, or a folder, or a model id."""
    return str(require(config, "pretrain", "this stage") / "model") if config.model.from_scratch else config.model.name


def load_tokenizer(config) -> PreTrainedTokenizerBase:
    """The base's tokenizer under our chat template, checked: it marks what the assistant says, with its stop token.

    Raises: StageError where the model cannot be found, or the template would train a model that never stops.
    """
    tokenizer = _from_pretrained(AutoTokenizer, base_path(config), revision=config.model.revision)
    tokenizer.chat_template = (ROOT / config.model.chat_template).read_text(encoding="utf-8")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise StageError("the tokenizer has no pad token of its own: with pad = eos the model would never learn to stop; add one to the tokenizer first")
    if not is_chat_template_stop_token_trained(tokenizer):
        raise StageError(f"{config.model.chat_template} leaves the end of an assistant's turn out of {{% generation %}}: the model would never learn to stop")
    return tokenizer


def load_base(config, cls=AutoModelForCausalLM, **kwargs):
    return _from_pretrained(cls, base_path(config), revision=config.model.revision, dtype=getattr(torch, config.model.dtype), **kwargs)


def _from_pretrained(cls, path: str, **kwargs):
    try:
        return cls.from_pretrained(path, trust_remote_code=False, **kwargs)
    except (OSError, ValueError) as error:
        raise StageError(f"model.name={path} is neither a local folder with a model nor a reachable model id ({type(error).__name__}); "
                         "give the path of a downloaded folder") from None


def put_adapter(model, name: str, folder: Path, **lora) -> PeftModel:
    """A base, or one that has adapters already, with the adapter saved in `folder`; `lora` changes values of its configuration.

    Raises: StageError where it was made for another base: a weight is missing, left over, or has another shape.
    """
    settings, weights = LoraConfig.from_pretrained(folder), load_peft_weights(str(folder), device=str(model.device))
    for key, value in {"task_type": "CAUSAL_LM", "modules_to_save": None, "inference_mode": False, **lora}.items():
        setattr(settings, key, value)
    if isinstance(model, PeftModel):
        model.add_adapter(name, settings)
    else:
        model = get_peft_model(model, settings, adapter_name=name)
    own = {key.replace(f".{name}.", "."): weight for key, weight in model.named_parameters() if f".{name}." in key}
    strange = sorted(set(own) ^ set(weights)) or [key for key in own if own[key].shape != weights[key].shape]
    if strange:
        raise StageError(f"{folder} was made for another base model than this run's ({strange[0]} does not fit): train it again on this one")
    set_peft_model_state_dict(model, weights, adapter_name=name)
    return model


def load_sft(config, base=None) -> PeftModel:
    """The base under the SFT adapter, to be trained further; named "default", as TRL's DPO wants it."""
    return put_adapter(base or load_base(config), "default", require(config, "sft", "this stage") / "adapter")


def load_candidate(config, name: str):
    """A candidate for evaluation or export, adapter merged: base, sft, sft_full, or a later stage by its name."""
    if name == "base":
        return load_base(config)
    if name == "sft_full":
        return _from_pretrained(AutoModelForCausalLM, str(stage_dir(config, "sft") / "full"), dtype=getattr(torch, config.model.dtype))
    return put_adapter(load_base(config), "default", stage_dir(config, name) / "adapter").merge_and_unload()


def lora_config(settings) -> LoraConfig:
    modules = settings.target_modules
    return LoraConfig(task_type="CAUSAL_LM", r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
                      target_modules=modules if isinstance(modules, str) else list(modules))


# ---------------------------------------------------------------------------------------------------------------------
# Rows → tokens
# ---------------------------------------------------------------------------------------------------------------------


def count_tokens(tokenizer: PreTrainedTokenizerBase, messages: list[dict], **template) -> int:
    return len(tokenizer.apply_chat_template(messages, return_dict=True, **template)["input_ids"])


def conversations_of(rows: Iterable[dict]) -> Iterator[tuple[list[dict], set[int]]]:
    """Fold the rows of one conversation together: (all its messages, the indices of those to learn).

    A row's prompt holds the rows before it, so one sequence can teach every reply at the cost of one.
    """
    messages, targets, current = [], set(), None
    for row in rows:
        whole = row["prompt"] + row["completion"]
        if row["conversation_id"] != current or whole[: len(messages)] != messages:
            if targets:
                yield messages, targets
            targets = set()
        messages, current = whole, row["conversation_id"]
        targets.add(len(whole) - 1)
    if targets:
        yield messages, targets


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[dict], targets: set[int]) -> dict[str, list[int]]:
    """One sequence: input_ids and labels, both of length T; labels are IGNORE but on the replies to learn."""
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    speakers = iter([index for index, message in enumerate(messages) if message["role"] == "assistant"])
    labels, learn = [], False
    for position, (token, is_said) in enumerate(zip(ids, mask, strict=True)):
        if is_said and (position == 0 or not mask[position - 1]):
            learn = next(speakers) in targets
        labels.append(token if is_said and learn else IGNORE)
    return {"input_ids": ids, "labels": labels}


def sequences(tokenizer: PreTrainedTokenizerBase, rows: Iterable[dict], max_tokens: int) -> tuple[list[dict], int]:
    """Tokenised conversations no longer than max_tokens, and how many replies had to be dropped.

    A conversation that is too long is cut once per reply, by the same cut that serving makes; a reply that is too long
    by itself is dropped.
    """
    made, dropped = [], 0
    for messages, targets in conversations_of(rows):
        sequence = encode(tokenizer, messages, targets)
        if len(sequence["input_ids"]) <= max_tokens:
            made.append(sequence)
            continue
        for target in sorted(targets):
            cut = truncate(messages[: target + 1], max_tokens, lambda m: count_tokens(tokenizer, m))
            sequence = encode(tokenizer, cut, {len(cut) - 1})
            if len(sequence["input_ids"]) <= max_tokens:
                made.append(sequence)
            else:
                dropped += 1
    return made, dropped


def in_batches_of_like_length(examples: list[dict], batch_size: int, rng: random.Random) -> list[dict]:
    """The examples in about their order, but consecutive batches hold similar lengths: sixteen batches are sorted, and shuffled as batches.

    Little padding, and no trend of lengths over time: sorting alone (the Trainer's group_by_length) lets the loss swing.
    """
    batches, rest = [], []
    for start in range(0, len(examples), 16 * batch_size):
        near = sorted(examples[start:start + 16 * batch_size], key=lambda e: e["tokens"] if "tokens" in e else len(e["input_ids"]))
        made = [near[i:i + batch_size] for i in range(0, len(near), batch_size)]
        rest += made.pop() if len(made[-1]) < batch_size else []
        batches += rng.sample(made, len(made))
    return [example for batch in [*batches, rest] for example in batch]


def preferences(config, split: str) -> list[dict]:
    """The pairs of a split, as the stage prepare wrote them."""
    return [row for _, row in read_jsonl(require(config, "prepare", "this stage") / "preferences" / f"{split}.jsonl")]


def preference_rows(config, tokenizer: PreTrainedTokenizerBase, pairs: list[dict]) -> tuple[list[dict], int]:
    """Pairs for TRL's trainers, prompts cut as in serving; (rows, how many were too long and dropped).

    TRL would drop over-long pairs without a word, so they are cut or counted here.
    """
    rows, dropped = [], 0
    for row in pairs:
        longest = max((row["chosen"], row["rejected"]), key=lambda c: count_tokens(tokenizer, row["prompt"] + c))
        cut = truncate(row["prompt"] + longest, config.model.max_tokens, lambda m: count_tokens(tokenizer, m))
        tokens = count_tokens(tokenizer, cut)
        if tokens > config.model.max_tokens:
            dropped += 1
            continue
        rows.append({"conversation_id": row["conversation_id"], "prompt": [plain(m) for m in cut[:-1]], "chosen": [plain(m) for m in row["chosen"]],
                     "rejected": [plain(m) for m in row["rejected"]], "margin": row["margin"], "tokens": tokens})
    return rows, dropped


def plain(message: dict) -> dict:
    """A message whose keys are always the same, so that Arrow gives every row one schema."""
    return {"role": message["role"], "content": message["content"], "tool_calls": message.get("tool_calls") or []}


# ---------------------------------------------------------------------------------------------------------------------
# Trainers
# ---------------------------------------------------------------------------------------------------------------------


def trainer_arguments(config, stage: str, output_dir: Path, cls, settings=None, **fixed):
    """TRL's arguments: the shared base, the hardware's, the stage's own, and what the stage fixes, in that order.

    Raises: StageError for a key that TRL does not have.
    """
    own = dict(settings) if settings is not None else OmegaConf.to_container(config[stage].trainer)
    values = {**OmegaConf.to_container(config.trainer), **OmegaConf.to_container(config.hardware.trainer), **own, **fixed}
    values |= {"output_dir": str(output_dir / "checkpoints"), "seed": config.seed, "data_seed": config.seed, "report_to": config.tracking.report_to}
    unknown = sorted(set(values) - set(cls.__dataclass_fields__))
    if unknown:
        raise StageError(f"{stage}.trainer has {unknown}, which {cls.__name__} does not know; see conf/stage/{stage}.yaml")
    track(config, stage)
    return cls(**values)


def track(config, stage: str) -> None:
    """One W&B run a stage, grouped by the run's name; a restarted stage goes on under the same id."""
    if config.tracking.report_to != "wandb":
        return
    identity = hashlib.sha256(f"{Path(config.run_dir).resolve()} {stage} {json.dumps(OmegaConf.to_container(config.fingerprint), sort_keys=True)}".encode()).hexdigest()[:12]
    os.environ.update(WANDB_PROJECT=config.tracking.project, WANDB_MODE=config.tracking.mode, WANDB_RUN_GROUP=config.run_name, WANDB_NAME=f"{config.run_name}-{stage}",
                      WANDB_RUN_ID=identity, WANDB_RESUME="allow", WANDB_JOB_TYPE=stage, WANDB_DIR=config.run_dir)


def tell(config, stage: str, entry: dict) -> None:
    """A step's figures for W&B, where it is told anything, of a trainer that is not transformers'."""
    if config.tracking.report_to == "wandb":
        import wandb

        (wandb.run or wandb.init()).log({f"{stage}/{name}": value for name, value in entry.items() if isinstance(value, float)}, step=entry["step"])


class StopOnNan(TrainerCallback):
    """Stop at once when the loss is no number: every step after it is wasted."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and logs.get("loss") is not None and not torch.isfinite(torch.tensor(float(logs["loss"]))):
            raise StageError(f"the loss is {logs['loss']} at step {state.global_step}: lower the learning rate of this stage, or look at its data")


class Bar(ProgressCallback):
    """The Trainer's progress bar with the loss beside it, instead of a dictionary printed at every logging step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")

    def on_evaluate(self, args, state, control, **kwargs):
        self.on_predict(args, state, control)


def last_checkpoint(checkpoints: Path, written_last: str = "trainer_state.json") -> str | None:
    """The newest checkpoint that was written to its end; one that a kill cut short is removed.

    The Trainer writes trainer_state.json after everything else, and removes the checkpoint before it only then.
    """
    whole = []
    for folder in checkpoints.glob("checkpoint-*"):
        try:
            json.loads((folder / written_last).read_text())
            whole.append(folder)
        except (OSError, ValueError):
            if process_rank() == 0:
                shutil.rmtree(folder)
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[1]))) if whole else None


def train(trainer, output_dir: Path) -> list[dict]:
    """Train, or go on from the last checkpoint; write the curve to `curve.json` and return it."""
    checkpoints = output_dir / "checkpoints"
    trainer.add_callback(StopOnNan())
    trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(Bar())
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    curve = [entry for entry in trainer.state.log_history if "loss" in entry]
    if trainer.is_world_process_zero():
        write_json(output_dir / "curve.json", curve)
    return curve


def save_trained(trainer, folder: Path) -> None:
    """Save what a trainer trained, with its tokenizer, and nothing else: no pickled arguments, no reference adapter, which TRL writes beside the policy.

    To be called in every process: sharded weights are gathered by all of them.
    """
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        shutil.rmtree(folder / "ref", ignore_errors=True)
        (folder / "training_args.bin").unlink(missing_ok=True)
