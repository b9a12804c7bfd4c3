"""The other side of benchmarks/ppo.py: TRL 1.12's PPOTrainer, the last line of TRL that had one. Run by that other Python, not by hand.

    python -m benchmarks.ppo_trl spec.json result.json

What it is given: the same prompts, batch, reply length, epochs, learning rate and reward; LoRA of the same rank on the policy, so that the reference is free.
Its reward and value models are whole models, as in its examples: a PeftModel does not pass for one.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from data_prep.artifacts import peak_memory


class Learned(torch.nn.Module):
    """The project's reward ensemble in the shape in which PPOTrainer wants a reward model: a backbone and a score, here the same number at each token."""

    base_model_prefix = "backbone"

    def __init__(self, run_dir: str, overrides: list[str]):
        super().__init__()
        from data_prep.artifacts import recorded_config, stage_dir
        from training.ensemble import load_rewards
        from training.models import load_tokenizer

        config = recorded_config(Path(run_dir), "ppo", overrides)
        source = stage_dir(config, "reward")
        self.calibration = json.loads((source / "calibration.json").read_text())
        self.model, self.score, self.context = load_rewards(config, load_tokenizer(config), source), torch.nn.Identity(), 0

    def backbone(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_) -> SimpleNamespace:
        from training.ensemble import rewards
        from training.trees import grow

        rows = [(ids[mask].tolist(), int(mask[self.context:].sum())) for ids, mask in zip(input_ids, attention_mask.bool(), strict=True)]
        trees = [grow([ids]) for ids, _ in rows]
        scores = rewards(self.model, self.calibration, trees, [[tree.leaves[0][-length:]] for tree, (_, length) in zip(trees, rows, strict=True)])
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(-1, input_ids.shape[1], 1)])


def main(spec: dict) -> dict:
    torch.manual_seed(spec["seed"])
    torch.set_num_threads(spec["threads"])
    dtype = torch.bfloat16 if spec["device"] == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(spec["base"], padding_side="left")

    def classifier() -> torch.nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(spec["base"], num_labels=1, dtype=dtype)

    reward = Learned(spec["run_dir"], spec["overrides"]) if spec["run_dir"] else classifier()
    steps, batch = len(spec["prompts"]), len(spec["prompts"][0]) * spec["drafts"]
    arguments = PPOConfig(output_dir=str(Path(spec["folder"]) / "trl"), per_device_train_batch_size=spec["micro"], gradient_accumulation_steps=batch // spec["micro"], num_mini_batches=spec["minibatches"],
                          num_ppo_epochs=spec["epochs"], total_episodes=steps * batch, response_length=spec["reply_tokens"], stop_token="eos", missing_eos_penalty=1.0, temperature=1.0, kl_coef=0.05,
                          learning_rate=spec["learning_rate"], lr_scheduler_type="constant", num_sample_generations=0, report_to="none", save_strategy="no", logging_steps=1, seed=spec["seed"],
                          use_cpu=spec["device"] == "cpu", bf16=spec["device"] == "cuda", gradient_checkpointing=spec["checkpointing"], dataloader_num_workers=0)
    drawn: list[tuple[float, float]] = []
    plain = ppo_trainer.batch_generation

    def timed(model, queries, *rest):
        started = time.perf_counter()
        made = plain(model, queries, *rest)
        drawn.append((started, time.perf_counter()))
        reward.context = queries.shape[1]
        return made

    ppo_trainer.batch_generation = timed
    dataset = Dataset.from_list([{"input_ids": ids} for each in spec["prompts"] for ids in each for _ in range(spec["drafts"])])
    trainer = PPOTrainer(arguments, tokenizer, AutoModelForCausalLM.from_pretrained(spec["base"], dtype=dtype), None, reward, dataset, classifier(), eval_dataset=dataset.select(range(1)),
                         peft_config=LoraConfig(**spec["lora"]))
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    ends = [start for start, _ in drawn[1:]] + [time.perf_counter()]
    trainer.model.policy.save_pretrained(Path(spec["folder"]) / "policy")
    peak = torch.cuda.max_memory_allocated() if spec["device"] == "cuda" else peak_memory()
    return {"rollout": [b - a for a, b in drawn], "step": [end - start for (start, _), end in zip(drawn, ends, strict=True)], "peak": peak}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
