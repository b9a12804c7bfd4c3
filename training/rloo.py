"""Stage `rloo`: TRL's RLOO (arXiv:2402.14740) against the same learned reward as PPO, on the archive's prompts. Not among the default stages.

No value model: several replies to one prompt are each other's baseline. The base is held once here too, with the policy, TRL's reference and the
reward models as its adapters.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

from data_prep.artifacts import StageError, require, stage_output
from data_prep.conversation import read_jsonl, truncate, write_json
from training.adapters import OneBase
from training.ensemble import load_rewards, rewards
from training.models import load_tokenizer, plain, train, trainer_arguments
from training.rollouts import kl_from_sft, prompt_ids
from training.trees import grow


def run(config) -> None:
    tokenizer, source = load_tokenizer(config), require(config, "reward", "rloo")
    gate, calibration = json.loads((source / "gate.json").read_text()), json.loads((source / "calibration.json").read_text())
    with stage_output(config, "rloo") as out:
        if not gate["passed"]:
            write_json(out / "refusal.json", {"reason": gate["why"], "gate": gate["checks"]})
            out.summary(f"refused: the reward model did not pass its gate ({gate['why']})", refused=gate["why"])
            return
        model = OneBase(config, tokenizer)
        model.add("default", require(config, "sft", "rloo") / "adapter")
        load_rewards(config, tokenizer, source, model)
        model.model.set_adapter("default")
        room = min(config.model.max_new_tokens, config.model.max_tokens // 2)

        def learned_reward(prompts: list[list[dict]], completion_ids: list[list[int]], **_) -> list[float]:
            made = [(prompt_ids(tokenizer, prompt, config.model.max_tokens, room), ids) for prompt, ids in zip(prompts, completion_ids, strict=True)]
            trees = [grow([prompt + reply]) for prompt, reply in made]
            return rewards(model, calibration, trees, [[tree.leaves[0][-len(reply):]] for tree, (_, reply) in zip(trees, made, strict=True)]).tolist()

        rows = [row for _, row in read_jsonl(require(config, "prepare", "rloo") / "prompts/train.jsonl")]
        chosen = random.Random(config.seed).sample(rows, min(len(rows), config.rloo.prompts))
        cut = [truncate([plain(message) for message in row["prompt"]], config.model.max_tokens - room, lambda m: len(prompt_ids(tokenizer, m, 1 << 30, 0))) for row in chosen]
        kept = [prompt for prompt in cut if len(prompt_ids(tokenizer, prompt, 1 << 30, 0)) <= config.model.max_tokens - room]
        if not kept:
            raise StageError(f"none of {len(cut)} prompts fits into model.max_tokens={config.model.max_tokens} with {room} tokens left for a reply")
        dataset = Dataset.from_list([{"prompt": prompt} for prompt in kept])
        arguments = trainer_arguments(config, "rloo", Path(out), RLOOConfig, max_completion_length=room, remove_unused_columns=False)
        trainer = RLOOTrainer(model.model, reward_funcs=learned_reward, args=arguments, train_dataset=dataset, processing_class=tokenizer)
        curve = train(trainer, Path(out))
        model.save("default", out / "adapter")
        logged = [entry["reward"] for entry in curve if "reward" in entry]
        metrics = {"prompts": len(dataset), "dropped_too_long": len(cut) - len(kept), "reward_first": logged[0], "reward_last": logged[-1], "kl": kl_from_sft(config, tokenizer, out / "adapter")}
        write_json(out / "metrics.json", metrics)
        out.summary(f"{len(dataset)} prompts → reward {logged[0]:.2f} to {logged[-1]:.2f}, {metrics['kl']:.2f} nats a reply from sft; {len(cut) - len(kept)} too long", **metrics)
