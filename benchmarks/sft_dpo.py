"""Our SFT and DPO beside plain TRL, as one would call its trainers: supervised tokens a second, seconds a step, memory.

    python -m benchmarks.sft_dpo run_dir=runs/dev [shape=135m|8b] [device=cpu|cuda] [steps=12] [batch=16] [pairs=16] [rows=4000] [out=benchmarks/sft_dpo.md] [key=value of conf/]

A finished run of the pipeline gives the data: its archive's short turns, and its pairs. Its own base is trained, or random weights of `shape`. Each way runs in a process of
its own, on batches of about as many tokens. Plain SFT gets a row a reply, {prompt, completion}, or a row a conversation, {messages} with the loss on the
assistant alone (all its messages, where a row a reply leaves out what `prepare` did); plain DPO {prompt, chosen, rejected}; none of them with gradient checkpointing on a
CPU. Every way is run `repeats` times, in turns; the table has the middle one and the range. On a GPU all have gradient checkpointing, as TRL has by default, but for the ways of
ours that say so; packed rows are of 4,096 tokens there. And the utilisation: 4 N a token for LoRA, the vocabulary
where something is learned, nothing for what is computed twice or is padding, against a matrix multiplication in the same run.
"""

from __future__ import annotations

import datetime
import itertools
import json
import random
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.shapes import LORA, ceiling, link, machine, made_from, peak_bytes, random_adapter, random_base, shown, side, sizes, wait
from data_prep.artifacts import recorded_config, stage_dir, stage_output
from data_prep.conversation import read_jsonl, write_json
from training import dpo, sft
from training.lora import adding
from training.models import IGNORE, load_base, load_sft, load_tokenizer, lora_config, plain, preference_rows, preferences, quieten, sequences, trainer_arguments

WAYS = {"sft": ["TRL, a row a reply", "TRL, a row a conversation", "ours, batches of like length", "ours, packed"], "dpo": ["TRL", "TRL, reference cached", "ours"]}
UNCHECKED = "no checkpointing"
ON_A_GPU = {"sft": [*WAYS["sft"], *(f"{way}, {UNCHECKED}" for way in WAYS["sft"][2:])], "dpo": [*WAYS["dpo"], f"ours, {UNCHECKED}"]}
PACKED = 4096            # tokens of a packed row on a GPU, as of conf/model/qwen3_4b.yaml
SPEED = {"sft": "supervised_per_second", "dpo": "real_per_second"}          # what is compared: batches differ in size
LEAST = 2                # steps left out of the times at the beginning
ROWS = 4000              # of the archive's replies, and half as many pairs: all of these are prepared, so many steps or not


class Watch(TrainerCallback):
    """Times of steps, and what was in their batches."""

    def __init__(self, device: str):
        self.device, self.begun, self.ended, self.batches = device, [], [], []

    def on_step_begin(self, args, state, control, **kwargs):
        wait(self.device)
        self.begun.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        wait(self.device)
        self.ended.append(time.perf_counter())

    def counting(self, collator):
        def collate(examples: list[dict]) -> dict:
            batch = collator(examples)
            learned = batch["labels"] != IGNORE if "labels" in batch else batch["completion_mask"].bool()
            real = batch["attention_mask"].sum() if "attention_mask" in batch else torch.tensor(batch["input_ids"].numel())
            self.batches.append((int(batch["input_ids"].numel()), int(real), int(learned.sum())))
            return batch
        return collate


def one(spec: dict) -> dict:
    """One way of training, some steps of it, in this process."""
    config = recorded_config(Path(spec["run_dir"]), "dpo", [*spec["overrides"], *(["hardware.trainer.gradient_checkpointing=false"] if spec["way"].endswith(UNCHECKED) else [])])
    quieten(config)
    tokenizer, folder, steps = load_tokenizer(config), Path(spec["folder"]), LEAST + spec["steps"]
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    fixed = {"max_steps": steps, "save_strategy": "no", "logging_steps": 1000, "disable_tqdm": True}
    started = time.perf_counter()
    trainer = (sft_trainer if spec["what"] == "sft" else dpo_trainer)(config, tokenizer, spec, folder, fixed)
    watch = Watch(spec["device"])
    trainer.add_callback(watch)
    trainer.data_collator = watch.counting(trainer.data_collator)
    trainer.train()
    took = watch.ended[-1] - watch.begun[LEAST]
    accumulated = trainer.args.gradient_accumulation_steps
    counted = np.array(watch.batches[LEAST * accumulated:steps * accumulated]).sum(0)
    found = {"seconds_a_step": took / spec["steps"], "tokens": counted[0] / spec["steps"], "real": counted[1] / spec["steps"], "supervised": counted[2] / spec["steps"], "supervised_per_second": counted[2] / took,
             "real_per_second": counted[1] / took, "until_first_step": watch.begun[0] - started, "rows": len(trainer.train_dataset), "batch": trainer.args.per_device_train_batch_size * accumulated,
             "peak": peak_bytes(spec["device"])}
    if spec["device"] == "cuda":
        top, (decoder, head) = ceiling("cuda", torch.bfloat16), sizes(trainer.model.get_base_model())
        found |= {"mfu": 4 * (decoder * counted[1] + head * counted[2]) / took / top, "ceiling": top}
    return found


def sft_rows(config, most: int) -> list[dict]:
    return [row for _, row in itertools.islice(read_jsonl(stage_dir(config, "prepare") / "sft/train.jsonl"), most)]


def sft_trainer(config, tokenizer, spec: dict, folder: Path, fixed: dict):
    model, rows = get_peft_model(load_base(config), lora_config(config.sft.lora)), sft_rows(config, spec["rows"])
    if spec["way"].startswith("ours"):
        packed = "packed" in spec["way"]
        changes = {**fixed, "packing": packed, "gradient_checkpointing": config.hardware.trainer.gradient_checkpointing, **({"per_device_train_batch_size": 1, "gradient_accumulation_steps": max(1, round(spec["batch_tokens"] / config.model.max_tokens))} if packed else
                                                  {"per_device_train_batch_size": spec["batch"], "gradient_accumulation_steps": 1})}
        made, _ = sequences(tokenizer, rows, config.model.max_tokens)
        return sft.trainer_of(config, adding(model), tokenizer, {"train": Dataset.from_list(made), "validation": None}, folder, changes)
    if spec["way"] == "TRL, a row a reply":
        dataset, own = [{"prompt": [plain(m) for m in row["prompt"]], "completion": [plain(m) for m in row["completion"]]} for row in rows], {}
    else:
        whole = {row["conversation_id"]: row["prompt"] + row["completion"] for row in rows}
        dataset, own = [{"messages": [plain(m) for m in messages]} for messages in whole.values()], {"assistant_only_loss": True}
    arguments = trainer_arguments(config, "sft", folder, SFTConfig, {}, learning_rate=1e-4, per_device_train_batch_size=spec["batch"], max_length=config.model.max_tokens, **own, **fixed)
    return SFTTrainer(model, arguments, train_dataset=Dataset.from_list(dataset), processing_class=tokenizer)


def dpo_trainer(config, tokenizer, spec: dict, folder: Path, fixed: dict):
    pairs = preferences(config, "train")
    rows, _ = preference_rows(config, tokenizer, random.Random(config.seed).sample(pairs, min(spec["rows"] // 2, len(pairs))))
    fixed = {**fixed, "per_device_train_batch_size": spec["batch"], "gradient_accumulation_steps": 1}
    config.dpo.trainer = {**config.dpo.trainer, **fixed}
    if spec["way"].startswith("ours"):
        return dpo.trainer_of(config, tokenizer, rows, folder)
    arguments = trainer_arguments(config, "dpo", folder, DPOConfig, {}, learning_rate=1e-4, max_length=config.model.max_tokens,
                                  precompute_ref_log_probs=spec["way"] == "TRL, reference cached", **fixed)
    return DPOTrainer(load_sft(config), args=arguments, train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]), processing_class=tokenizer)


def histogram(lengths: list[int], width: int = 50) -> list[str]:
    """The lengths as a table of shares."""
    edges = [0, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 10 ** 9]
    counts = np.histogram(lengths, edges)[0]
    return ["| tokens | share |", "|---|---|", *(f"| {a}–{b - 1 if b < 10 ** 9 else ''} | {'█' * round(width * n / len(lengths))} {n / len(lengths):.1%} |" for a, b, n in zip(edges, edges[1:], counts, strict=False) if n)]


def main(arguments: list[str]) -> dict:
    options = dict(argument.split("=", 1) for argument in arguments)
    run_dir, shape, device, steps = Path(options.pop("run_dir", "runs/dev")).resolve(), options.pop("shape", None), options.pop("device", "cpu"), int(options.pop("steps", 12))
    repeats = int(options.pop("repeats", 3))
    pairs, most = int(options.pop("pairs", 16)), int(options.pop("rows", ROWS))
    out, batch, work = Path(options.pop("out", "runs/bench_sft_dpo/sft_dpo.md")), int(options.pop("batch", 16)), Path(options.pop("work", "runs/bench_sft_dpo")).resolve()
    overrides = [f"{key}={value}" for key, value in options.items()]
    config = recorded_config(run_dir, "dpo", overrides)
    quieten(config)
    tokenizer = load_tokenizer(config)
    work = work / made_from(config, ("prepare", "sft"), [*overrides, str(shape), device])
    if shape:
        run_dir, overrides = on_random_weights(config, shape, device, work, overrides)
    rows = sft_rows(config, most)
    made, _ = sequences(tokenizer, rows, config.model.max_tokens)
    lengths = [len(each["input_ids"]) for each in made]
    spec = {"run_dir": str(run_dir), "overrides": overrides, "device": device, "steps": steps, "rows": most}
    results: dict[str, dict] = {"sft": {}, "dpo": {}}
    of_a_batch = batch * float(np.mean(lengths))
    mean_row = float(np.mean([len(tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"]) for row in rows[::10]]))
    runs: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for number in range(repeats):
        for what, way in ((what, way) for what, ways in (ON_A_GPU if device == "cuda" else WAYS).items() for way in ways):
            size = pairs if what == "dpo" else max(1, round(of_a_batch / mean_row)) if way == "TRL, a row a reply" else batch
            print(f"{number + 1} of {repeats}: {what}, {way}", file=sys.stderr, flush=True)
            runs[what, way].append(side(sys.executable, ["benchmarks.sft_dpo", "one"], {**spec, "what": what, "way": way, "batch": size, "batch_tokens": of_a_batch}, work / f"{what} {way} {number}".replace(",", "").replace(" ", "_")))
    for (what, way), made in runs.items():
        made.sort(key=lambda each: each[SPEED[what]])
        results[what][way] = {**made[len(made) // 2], "range": [made[0][SPEED[what]], made[-1][SPEED[what]]]}
    lines = page(results, lengths, arguments, device, shape, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines), encoding="utf-8")
    write_json(work / "sft_dpo.json", results)
    print("\n".join(lines))
    return results


def on_random_weights(config, shape: str, device: str, work: Path, overrides: list[str]) -> tuple[Path, list[str]]:
    """A run like this one on random weights of a shape, with its tokenizer and data and an untrained adapter for SFT's: its folder, and the overrides to read it with."""
    base, folder = random_base(shape, work / shape, device, load_tokenizer(config)), work / f"{shape}_run"
    gpu = device == "cuda"
    overrides = [*overrides, f"run_dir={folder}", "model.from_scratch=false", f"model.name={base}", f"model.dtype={'bfloat16' if gpu else 'float32'}", f"sft.lora.r={LORA.r}", f"hardware.trainer.use_cpu={not gpu}",
                 f"hardware.trainer.bf16={gpu}", f"hardware.trainer.gradient_checkpointing={gpu}", *([f"model.max_tokens={PACKED}"] if gpu else [])]
    link(Path(config.run_dir), folder, "config", "prepare")
    own = recorded_config(folder, "dpo", overrides)
    own.fingerprint = {"benchmark": "sft_dpo"}
    if not stage_dir(own, "sft").is_dir():
        with stage_output(own, "sft") as out:
            random_adapter(load_base(own), out / "adapter")
    return folder, overrides


def page(results: dict, lengths: list[int], arguments: list[str], device: str, shape: str | None, config) -> list[str]:
    lines = ["# SFT and DPO beside plain TRL", "", f"{datetime.date.today()}, {machine(device)}: {shown('benchmarks.sft_dpo', arguments)}", "",
             f"{'Random weights of shape ' + shape if shape else 'The base of the run'}, the archive's conversations ({len(lengths)} of them, {np.mean(lengths):.0f} tokens on average, at most {config.model.max_tokens}):", "",
             *histogram(lengths), "", "## SFT", "", "| | supervised tokens/s (range) | against TRL by replies | by conversations | tokens a step, padding | supervised | peak memory |", "|---|---|---|---|---|---|---|"]
    speed = {way: each[SPEED[what]] for what in WAYS for way, each in results[what].items() if what == "sft"}
    for way, each in results["sft"].items():
        lines.append(f"| {way} | {speed[way]:.0f} ({each['range'][0]:.0f} to {each['range'][1]:.0f}) | {speed[way] / speed[WAYS['sft'][0]]:.2f}× | {speed[way] / speed[WAYS['sft'][1]]:.2f}× | {each['tokens']:.0f}, "
                     f"{1 - each['real'] / each['tokens']:.0%} | {each['supervised']:.0f} | {each['peak'] / 2**30:.2f} GiB |")
    own = results["dpo"]["ours"]
    tokens = own["rows"] * 2 * float(np.mean([each["real"] / (2 * each["batch"]) for each in results["dpo"].values()]))          # of an epoch
    epoch = {way: tokens / each[SPEED["dpo"]] for way, each in results["dpo"].items()}
    lines += ["", "## DPO", "", f"An epoch of {own['rows']} pairs, about {tokens:.0f} tokens of prompt and reply, both sides.", "",
              "| | tokens/s, no padding (range) | against TRL | an epoch | before the first step | peak memory |", "|---|---|---|---|---|---|"]
    lines += [f"| {way} | {each[SPEED['dpo']]:.0f} ({each['range'][0]:.0f} to {each['range'][1]:.0f}) | {epoch['TRL'] / epoch[way]:.2f}× | {epoch[way]:.0f} s | {each['until_first_step']:.0f} s | {each['peak'] / 2**30:.2f} GiB |"
              for way, each in results["dpo"].items()]
    for name, way in (("TRL's own cache", "TRL, reference cached"), ("Ours", "ours")):
        saved, paid = epoch["TRL"] - epoch[way], results["dpo"][way]["until_first_step"] - results["dpo"]["TRL"]["until_first_step"]
        lines.append(f"\n{name}: {paid:.0f} s more before the first step, {saved:.0f} s less an epoch: " + (f"pays for itself after {max(0.0, paid / saved):.1f} epochs." if saved > 0 else "never pays for itself."))
    top = next((each["ceiling"] for each in results["sft"].values() if "ceiling" in each), None)
    if top:
        lines += ["", f"Utilisation (4 N a token that is no padding, of the {top / 1e12:.0f} TFLOP/s of a matrix multiplication): " + ", ".join(f"{what} {way} {each['mfu']:.0%}" for what in results for way, each in results[what].items()) + "."]
    return [*lines, ""]


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        Path(sys.argv[3]).write_text(json.dumps(one(json.loads(Path(sys.argv[2]).read_text()))))
    else:
        main(sys.argv[1:])
