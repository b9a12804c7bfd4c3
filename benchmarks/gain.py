"""What learning from ratings is worth: each way of using them, on one base, against the ceiling of the true reward.

    python -m benchmarks.gain run_dir=runs/dev [out=benchmarks/gain.md] [conversations=500] [n=4] [key=value of conf/]

Beside the run's own candidates (sft, dpo, ppo) on the same simulated customers, unseen wordings: SFT on the replies alone that were rated well; the best of
n replies by the reward model; and PPO on the world's truth, which no product has, as the ceiling. A finished run of the pipeline is needed; what is
trained here lies under `<run_dir>/gain/` and is not trained again. Every difference is paired by customer; closed is the share of the way from
SFT to the ceiling.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from data_prep.artifacts import StageError, recorded_config, require, stage_dir
from data_prep.company.pack import load_pack
from data_prep.conversation import Message, write_json
from data_prep.statistics import paired_difference
from eval.metrics import SIMULATED
from eval.simulator import draw_talks, simulate
from serve.engine import Completion, Sampling
from serve.engine.embedded import Embedded
from training import ppo, sft
from training.ensemble import load_rewards, rewards
from training.group import Group
from training.models import load_candidate, load_tokenizer, quieten
from training.rollouts import Episode, Local, prompt_ids
from training.trees import Tree, grow

TOP = 4.0                # corrected stars of what SFT on top-rated replies may learn
NAMES = {"sft": "SFT on all replies", "sft_top": f"SFT on replies of {TOP:g} stars or more", "dpo": "DPO", "best_of_n": "best of n by the reward model", "ppo": "PPO on the learned reward",
         "ceiling": "PPO on the true reward"}


class BestOf:
    """An engine that draws n replies and says the one that the reward model likes best."""

    def __init__(self, config, tokenizer, n: int):
        self.config, self.tokenizer, self.n = config, tokenizer, n
        source = require(config, "reward", "best of n")
        self.calibration = json.loads((source / "calibration.json").read_text())
        self.model = load_rewards(config, tokenizer, source)
        self.model.add("policy", require(config, "sft", "best of n") / "adapter")
        self.draw = Local(self.model, "policy", config.model.max_new_tokens)
        self.calls = 0

    def generate(self, conversations: list[list[Message]], sampling: Sampling) -> list[Completion]:
        self.calls += 1
        prompts = [prompt_ids(self.tokenizer, messages, self.config.model.max_tokens, self.config.model.max_new_tokens) for messages in conversations for _ in range(self.n)]
        turns = self.draw(prompts, self.calls)
        groups = [turns[k:k + self.n] for k in range(0, len(turns), self.n)]
        trees = [grow(turn.prompt + turn.reply for turn in group) for group in groups]
        scores = rewards(self.model, self.calibration, trees, [[path[-len(turn.reply):] for path, turn in zip(tree.leaves, group, strict=True)] for tree, group in zip(trees, groups, strict=True)])
        best = [group[int(mine.argmax())] for group, mine in zip(groups, scores.split(self.n), strict=True)]
        return [Completion(self.tokenizer.decode(turn.reply, skip_special_tokens=True), "stop", len(turn.prompt), len(turn.reply)) for turn in best]


def true_reward(episodes: list[Episode], trees: list[Tree], replies: list[list[list[int]]]) -> torch.Tensor:
    """1 on the last reply of a conversation that succeeded without a violation, 0 elsewhere: what no product can know."""
    return torch.tensor([float(turn is episode.turns[-1] and episode.talk.is_over and episode.talk.world.succeeded() and not episode.talk.world.violations)
                         for episode in episodes for turn in episode.turns])


def top_rated(config, folder: Path) -> None:
    """SFT once more, on what was rated well alone."""
    changed = config.copy()
    OmegaConf.set_struct(changed, False)
    changed.sft.min_stars, changed.sft.full_parameter = TOP, False
    if not (folder / "sft/manifest.json").is_file():
        for stage in ("prepare", "pretrain"):
            link(stage_dir(config, stage), folder / stage)
        changed.run_dir, changed.fingerprint = str(folder), {"gain": "sft_top"}
        sft.run(changed)


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(source.resolve())


def ceiling(config, tokenizer, folder: Path) -> None:
    """PPO with the truth in the place of the ensemble; success is known at a conversation's end alone, so credit goes back through its replies."""
    if (folder / "ceiling/adapter").is_dir():
        return
    changed = config.copy()
    OmegaConf.set_struct(changed, False)
    changed.ppo.turn_discount, changed.ppo.kl_budget = 1.0, 1e9
    model = ppo.load_players(changed, tokenizer)
    curve = ppo.train_policy(changed, model, true_reward, lambda trees, replies: torch.zeros(1), folder / "ceiling", Group())
    write_json(folder / "ceiling/curve.json", curve)
    model.save("policy", folder / "ceiling/adapter")


def measured(config, tokenizer, folder: Path, conversations: int, n: int) -> dict[str, list[dict]]:
    """Outcomes of every candidate with the same customers."""
    pack, settings = load_pack(config.company), config.evaluate
    top = config.copy()
    top.run_dir = str(folder)
    found = {}
    for name in NAMES:
        if name not in ("sft", "sft_top", "best_of_n", "ceiling") and not (stage_dir(config, name) / "adapter").is_dir():
            continue
        if name == "best_of_n":
            engine = BestOf(config, tokenizer, n)
        else:
            candidate = load_candidate(top, "sft") if name == "sft_top" else load_candidate(top, "ceiling") if name == "ceiling" else load_candidate(config, name)
            engine = Embedded(candidate, tokenizer, config.model.max_tokens)
        found[name] = simulate(engine, draw_talks(pack, conversations, "unseen", settings.seed), batch_size=settings.batch_size, max_replies=settings.max_replies,
                               sampling=Sampling(max_tokens=config.model.max_new_tokens), label=name)
    return found


def table(outcomes: dict[str, list[dict]], n: int) -> tuple[list[str], dict]:
    """Markdown lines, and the figures in them."""
    success = {name: [float(o["success"]) for o in each] for name, each in outcomes.items()}
    way = sum(success["ceiling"]) - sum(success["sft"])
    lines, figures = ["| candidate | success | over SFT on all [95 %, paired] | closed | violations | reaches a human |", "|---|---|---|---|---|---|"], {}
    for name, each in outcomes.items():
        gain, low, high = paired_difference(success[name], success["sft"])
        row = {key: SIMULATED[key](each) for key in ("success", "violations", "human_reach")}
        figures[name] = {**row, "over_sft": {"value": gain, "low": low, "high": high}, "closed": (sum(success[name]) - sum(success["sft"])) / way if way else None}
        cells = [f"{row[key]['value']:.0%} [{row[key]['low']:.0%}, {row[key]['high']:.0%}]" for key in ("success", "violations", "human_reach")]
        closed = "" if name == "sft" or way <= 0 else f"{figures[name]['closed']:.0%}"
        lines.append(f"| {NAMES[name].replace('best of n', f'best of {n}')} | {cells[0]} | {'' if name == 'sft' else f'{gain:+.1%} [{low:+.1%}, {high:+.1%}]'} | {closed} | {cells[1]} | {cells[2]} |")
    return lines, figures


def main(arguments: list[str]) -> dict:
    options = dict(argument.split("=", 1) for argument in arguments)
    run_dir, conversations, n = Path(options.pop("run_dir", "runs/dev")), int(options.pop("conversations", 500)), int(options.pop("n", 4))
    out = Path(options.pop("out", run_dir / "gain/gain.md"))
    config = recorded_config(run_dir, "ppo", [f"{key}={value}" for key, value in options.items()])
    if not (stage_dir(config, "ppo") / "adapter").is_dir():
        raise StageError(f"{run_dir} has no policy of PPO: run the pipeline first (a refusal is in ppo/refusal.json)")
    quieten(config)
    tokenizer, folder = load_tokenizer(config), run_dir / "gain"
    link(stage_dir(config, "pretrain"), folder / "pretrain")
    top_rated(config, folder)
    ceiling(config, tokenizer, folder)
    outcomes = measured(config, tokenizer, folder, conversations, n)
    lines, figures = table(outcomes, n)
    made = f"{datetime.date.today()}, {conversations} simulated conversations a candidate, seed of the run {config.seed}: `python -m benchmarks.gain {' '.join(arguments)}`"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(["# What learning from ratings is worth", "", made, "", *lines, ""]), encoding="utf-8")
    write_json(folder / "gain.json", figures)
    print("\n".join(lines))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
