"""What the training benchmarks share: random models of a given shape, runs that go on from another one, what this machine can do at most, and what a process took."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data_prep.artifacts import ROOT, hash_value, peak_memory, read_manifest, stage_dir
from data_prep.conversation import write_json
from training.adapters import HEAD, Head
from training.pretrain import build_tokenizer

SHAPES = {
    "toy": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 600, "tie_word_embeddings": True},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}
LORA = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")


def random_base(shape: str, folder: Path, device: str, tokenizer=None) -> Path:
    """A Llama with random weights in a folder, with this tokenizer or one of its own; written once."""
    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    words = (ROOT / "README.md").read_text(encoding="utf-8").split("\n")
    tokenizer = tokenizer or build_tokenizer(iter(words * 3 + ["system user assistant tool"] * 9), 560, (ROOT / "training/templates/tiny.jinja").read_text(encoding="utf-8"))
    config = LlamaConfig(**{**SHAPES[shape], "vocab_size": max(SHAPES[shape]["vocab_size"], len(tokenizer))}, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=4096)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16 if device == "cuda" else torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()          # the sides are processes of their own: what this one kept of the GPU they would lack
    return folder


def random_adapter(base: torch.nn.Module, folder: Path, head: bool = False) -> Path:
    """A LoRA adapter as it is before training, with a head beside it where it is to be a reward or value model."""
    if not (folder / "adapter_config.json").is_file():
        model = get_peft_model(base, LORA)
        model.save_pretrained(folder)
        model.unload()
        if head:
            save_file(Head(base.config.hidden_size).state_dict(), folder / HEAD)
    return folder


def tokenizer_of(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


def sizes(model: torch.nn.Module) -> tuple[int, int]:
    """Weights that a token is multiplied with: (the decoder's, the head's). The table of embeddings is looked up, not multiplied with."""
    decoder = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name and "embed_tokens" not in name and "lm_head" not in name)
    return decoder, model.get_output_embeddings().weight.numel()


def shown(module: str, arguments: list[str]) -> str:
    """The command of a page: of a path its last part alone, for the rest of it is of this machine."""
    parts = [argument.split("=", 1) for argument in arguments if not argument.startswith(("work=", "trl_python="))]
    return f"`python -m {module} " + " ".join(f"{key}={Path(value).name if Path(value).is_absolute() else value}" for key, value in parts) + "`"


def made_from(config, stages: tuple[str, ...], overrides: list[str]) -> str:
    """A short name for what some stages of a run left and the values that go with it: what was trained from other things is not taken for it."""
    return hash_value([[(read_manifest(stage_dir(config, stage)) or {}).get("outputs") for stage in stages], overrides])[:10]


def link(run_dir: Path, folder: Path, *stages: str) -> None:
    """A run's folder of its own that goes on from another run's stages, as far as that one has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if (run_dir / stage).is_dir() and not (folder / stage).exists():
            (folder / stage).symlink_to((run_dir / stage).resolve())


def side(python: str, arguments: list[str], spec: dict, folder: Path) -> dict:
    """One side of a comparison in a process of its own, `python -m <arguments> spec.json result.json`; its log lies in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "spec.json", {**spec, "folder": str(folder)})
    command = [python, "-m", *arguments, str(folder / "spec.json"), str(folder / "result.json")]
    with (folder / "log.txt").open("w") as log:
        made = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if made.returncode:
        raise SystemExit(f"{' '.join(arguments)} stopped with exit status {made.returncode}: see {folder / 'log.txt'}")
    return json.loads((folder / "result.json").read_text())


def ceiling(device: str, dtype: torch.dtype, width: int = 8192, rounds: int = 40) -> float:
    """FLOP/s of a large matrix multiplication here and now: what utilisation is measured against."""
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    wait(device)
    started = time.perf_counter()
    for _ in range(rounds):
        a @ b
    wait(device)
    return 2 * width ** 3 * rounds / (time.perf_counter() - started)


def machine(device: str) -> str:
    """What something was measured on, in words."""
    return f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}" if device == "cuda" else f"a CPU, {os.cpu_count()} cores"


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(device: str) -> int:
    """The most memory this process ever held: of the GPU where there is one, else resident."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()
