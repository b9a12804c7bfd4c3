"""What a step of SFT costs by how its tokens stand: packed under a mask, packed with attention by sequence, or as rows of one length; and which operations it goes to.

    python -m benchmarks.attention [shape=8b] [device=cuda] [tokens=4096] [length=195] [learned=0.25] [out=runs/attention.md]

Random weights, LoRA on all linear layers, forward and back, no trainer and no optimiser around it. Of the tokens a share is learned: the vocabulary is looked at for these
alone, as in training (training/labelled.py; TRL does on a GPU), or for all. Utilisation: 4 N a token, the vocabulary where something is learned, of a matrix multiplication in the same run.
"""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path

import torch
from peft import get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.shapes import LORA, SHAPES, ceiling, machine, shown, sizes, wait
from training.labelled import give_loss_of_labelled
from training.lora import adding
from training.models import IGNORE
from training.packed import NAME

ROUNDS, LEFT_OUT = 6, 3
WAYS = {"packed, under a mask": ("sdpa", True), "packed, by sequence": (NAME, True), "rows of one length": ("sdpa", False)}


def batch(tokens: int, length: int, learned: float, packed: bool, device: str) -> dict:
    """About so many tokens in sequences of one length: one row with its positions, or a row each. Labels on a share of them."""
    rows = tokens // length
    ids = torch.randint(0, 500, (1, rows * length) if packed else (rows, length), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < learned, ids, IGNORE)
    positions = torch.arange(length).repeat(rows)[None] if packed else torch.arange(length).expand(rows, -1)
    begin = {"cu_seq_lens_q": torch.arange(0, rows * length + 1, length, dtype=torch.int32).to(device), "max_length_q": length} if packed else {}
    return {"input_ids": ids.to(device), "labels": labels.masked_fill(positions == 0, IGNORE).to(device), "position_ids": positions.to(device), **begin}


def step(model, inputs: dict, device: str) -> float:
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss = model(**inputs, use_cache=False).loss
    loss.backward()
    model.zero_grad()
    return float(loss.detach())


def main(arguments: list[str]) -> dict[str, dict]:
    options = dict(argument.split("=", 1) for argument in arguments)
    shape, device, out = options.get("shape", "8b"), options.get("device", "cuda"), Path(options.get("out", "runs/attention.md"))
    tokens, length, learned = int(options.get("tokens", 4096)), int(options.get("length", 195)), float(options.get("learned", 0.25))
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=tokens)).to(torch.bfloat16 if device == "cuda" else torch.float32)
    model = adding(get_peft_model(model, LORA)).train()
    model.enable_input_require_grads()
    plain, (decoder, head), top = model.get_base_model().forward, sizes(model.get_base_model()), ceiling(device, torch.bfloat16 if device == "cuda" else torch.float32, width=8192 if device == "cuda" else 1024)
    lines = ["# A step of SFT by how its tokens stand", "", f"{datetime.date.today()}, {machine(device)}: {shown('benchmarks.attention', arguments)}", "",
             f"Shape {shape}, sequences of {length} tokens, {learned:.0%} of them learned; a matrix multiplication reached {top / 1e12:.1f} TFLOP/s.", "",
             "| | vocabulary | checkpointing | ms a step | tokens/s | utilisation | peak GiB |", "|---|---|---|---|---|---|---|"]
    results: dict[str, dict] = {}
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for labelled in (True, False):
            model.get_base_model().forward = plain
            if labelled:
                give_loss_of_labelled(model)
            for way, (attention, packed) in WAYS.items():
                model.get_base_model().set_attn_implementation(attention)
                inputs = batch(tokens, length, learned, packed, device)
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                for number in range(LEFT_OUT + ROUNDS):
                    if number == LEFT_OUT:
                        wait(device)
                        started = time.perf_counter()
                    loss = step(model, inputs, device)
                wait(device)
                took, n = (time.perf_counter() - started) / ROUNDS, inputs["input_ids"].numel()
                peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
                name = f"{way}, {'labelled' if labelled else 'all'}, {'checkpointing' if checkpointing else 'none'}"
                results[name] = {"loss": loss, "seconds": took, "utilisation": 4 * (decoder * n + head * n * learned) / took / top}
                lines.append(f"| {way} | {'labelled' if labelled else 'all'} | {'yes' if checkpointing else 'no'} | {took * 1000:.0f} | {n / took:.0f} | {results[name]['utilisation']:.0%} | {peak:.1f} |")
                if labelled and not checkpointing:
                    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]) as seen:
                        step(model, inputs, device)
                        wait(device)
                    results[name]["operations"] = seen.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=12, max_name_column_width=60)
    lines += [line for name, each in results.items() if "operations" in each for line in ("", f"Operations of {name}:", "", "```", each["operations"], "```")]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
