"""A run with small random models in the place of trained ones, so that what reads them can be tested in seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from conf.load import load_config
from data_prep.artifacts import stage_output
from data_prep.company.pack import load_pack
from data_prep.conversation import write_json, write_jsonl
from training.adapters import HEAD, Head
from training.models import lora_config
from training.pretrain import build_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 1024,
         "tie_word_embeddings": True}


def toy_run(folder: Path, *overrides: str):
    """A configuration whose run has a random base, an SFT adapter and reward models that passed their gate."""
    config = load_config([f"run_dir={folder}/run", "hardware.threads=1", "model.max_new_tokens=6", "sft.lora.r=4", "reward.members=2", "ppo.start=sft", *overrides])
    config.fingerprint = {"seed": 0}
    torch.manual_seed(0)
    template = (ROOT / config.model.chat_template).read_text()
    pack = load_pack(str(ROOT / "data_prep/company/sample"))
    words = [text for words in pack.phrases.values() for texts in words["agent"]["kind"].values() for text in ([texts] if isinstance(texts, str) else texts)]
    tokenizer = build_tokenizer(iter(words * 2 + ["system user assistant tool"] * 3), 400, template)
    base = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **SMALL))
    with stage_output(config, "pretrain") as out:
        base.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
    with stage_output(config, "sft") as out:
        random_adapter(base, config, Path(out) / "adapter")
        tokenizer.save_pretrained(out / "adapter")
    with stage_output(config, "reward") as out:
        for name in [*(f"members/{k}" for k in range(config.reward.members)), "held_out"]:
            random_adapter(base, config, Path(out) / name)
            head = Head(base.config.hidden_size)
            torch.nn.init.normal_(head.linear.weight)
            save_file(head.state_dict(), out / name / HEAD)
        write_json(out / "gate.json", {"passed": True, "checks": [], "why": ""})
        write_json(out / "calibration.json", {"members": [{"mean": -6.0, "std": 1.0}] * config.reward.members, "held_out": {"mean": -6.0, "std": 1.0}, "spread_penalty": 0.5, "temperature": 1.0})
    with stage_output(config, "prepare") as out:
        write_jsonl(out / "prompts/train.jsonl", [{"prompt": [{"role": "user", "content": f"where is order {number}?"}]} for number in range(20)])
        said = [{"role": "assistant", "content": words[0]}], [{"role": "assistant", "content": words[1]}]
        write_jsonl(out / "sft/train.jsonl", [{"prompt": [{"role": "user", "content": f"where is order {number}?"}], "completion": said[number % 2], "stars": [4.5, 2.0][number % 2]} for number in range(20)])
    return config


def random_adapter(base, config, folder: Path) -> None:
    model = get_peft_model(base, lora_config(config.sft.lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    model.unload()
