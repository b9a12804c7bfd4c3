"""What learning from ratings is worth: each way of using them, on one base, against the ceiling of the true reward.

    python -m benchmarks.gain run_dir=runs/dev [out=benchmarks/gain.md] [conversations=500] [n=4] [key=value of conf/]

Beside the run's own candidates (sft, dpo, ppo) on the same simulated customers, unseen wordings: SFT on the replies alone that were rated well; PPO from SFT
without DPO before it; the best of n replies by the reward model; and, as the ceiling, PPO from DPO on the world's truth, which no product has: each reply is played on from to the end. A finished run of the
pipeline is needed; what is trained here lies under `<run_dir>/gain/` and is not trained again. Every difference is paired by customer; closed is the share of the way from
SFT to the ceiling.
"""

from __future__ import annotations

import copy
import datetime
import json
import sys
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks.shapes import link, made_from, shown
from data_prep.artifacts import StageError, recorded_config, require, stage_dir
from data_prep.company.pack import load_pack
from data_prep.company.talk import Talk, draw_talk
from data_prep.conversation import Message, read_jsonl, write_json, write_jsonl
from data_prep.hermes import parse_reply
from data_prep.statistics import paired_difference
from eval.metrics import SIMULATED
from eval.simulator import draw_talks, simulate
from serve.engine import Completion, Sampling
from serve.engine.embedded import Embedded
from training import ppo, sft
from training.adapters import OneBase
from training.ensemble import load_rewards, rewards
from training.group import Group
from training.models import load_candidate, load_tokenizer, quieten
from training.rollouts import Episode, Local, prompt_ids
from training.trees import Tree, grow

TOP = 4.0                # corrected stars of what SFT on top-rated replies may learn
NAMES = {"sft": "SFT on all replies", "sft_top": f"SFT on replies of {TOP:g} stars or more", "dpo": "DPO", "best_of_n": "best of n of SFT's replies by the reward model",
         "ppo_alone": "PPO from SFT", "ppo": "PPO from DPO", "ceiling": "PPO on the true reward"}


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


class Truth:
    """What no product can know, in the place of the ensemble: of each reply, drafts too, 1 where a conversation in which it is said goes on to be won, and -1 where not.

    From the place where it was drawn the world is played anew with it and, from there on, with replies of the policy: as the reward models do, the truth then judges every reply where it stands.
    """

    def __init__(self, config, model: OneBase):
        self.config, self.model, self.pack = config, model, load_pack(config.company)
        self.generate = Local(model, "policy", config.model.max_new_tokens, config.ppo.temperature, config.ppo.rollout_batch)

    def __call__(self, episodes: list[Episode], trees: list[Tree], replies: list[list[list[int]]]) -> torch.Tensor:
        ends = [talk for episode in episodes for talk in self.began(episode)]
        room = min(self.config.model.max_new_tokens, self.config.model.max_tokens // 2)
        while running := [talk for talk in ends if not talk.is_over and talk.replies < self.config.ppo.max_replies]:
            prompts = [prompt_ids(self.model.tokenizer, talk.messages, self.config.model.max_tokens, room) for talk in running]
            for talk, turn in zip(running, self.generate(prompts, self.config.seed + max(talk.replies for talk in running)), strict=True):
                talk.take(self.read(turn.reply))
        return torch.tensor([1.0 if talk.is_won() else -1.0 for talk in ends])

    def began(self, episode: Episode) -> list[Talk]:
        """For each turn the conversation up to it, with it as its last reply."""
        talk, made = draw_talk(self.pack, episode.talk.number, "seen", self.config.seed), []
        for place in episode.places():
            for number in place:
                made.append(copy.deepcopy(talk, {id(self.pack): self.pack}))
                made[-1].take(self.read(episode.turns[number].reply))
            talk.take(self.read(episode.turns[place[0]].reply))
        return made

    def read(self, reply: list[int]) -> Message:
        return parse_reply(self.model.tokenizer.decode(reply, skip_special_tokens=True))


def otherwise(config, folder: Path, stage, needs: tuple[str, ...], **changes):
    """A stage run once more with other values, in a run of its own that has what it needs from this one; not again where it is done. Returns that run's configuration."""
    changed, name = config.copy(), stage.__name__.split(".")[-1]
    OmegaConf.set_struct(changed, False)
    changed.run_dir, changed.fingerprint, changed[name] = str(folder), {"gain": folder.name}, {**changed[name], **changes}
    link(Path(config.run_dir), folder, *needs)
    if not (stage_dir(changed, name) / "manifest.json").is_file():
        stage.run(changed)
    return changed


def ceiling(config, tokenizer, folder: Path) -> None:
    """PPO from DPO with the truth in the place of the ensemble, in all else as the stage does it; nobody watches it, and it may go as far from SFT as it likes."""
    if (folder / "ceiling/adapter").is_dir():
        return
    changed = config.copy()
    OmegaConf.set_struct(changed, False)
    changed.ppo.kl_budget, changed.ppo.turn_discount, changed.ppo.drafts = 1e9, 0.0, max(2, config.ppo.drafts)
    model = ppo.load_players(changed, tokenizer)
    curve = ppo.train_policy(changed, model, Truth(changed, model), lambda trees, replies: torch.zeros(1), folder / "ceiling", Group())
    write_json(folder / "ceiling/curve.json", curve)
    model.save("policy", folder / "ceiling/adapter")


def measured(config, tokenizer, where: dict[str, tuple], conversations: int, n: int, folder: Path) -> dict[str, list[dict]]:
    """Outcomes of every candidate with the same customers, kept in `folder`; `where` each lies, as (configuration of a run, stage)."""
    pack, settings = load_pack(config.company), config.evaluate
    found = {}
    for name in NAMES:
        talks = folder / f"{name}-{n if name == 'best_of_n' else 1}-{conversations}.jsonl"
        if talks.is_file():
            found[name] = [row for _, row in read_jsonl(talks)]
            continue
        engine = BestOf(config, tokenizer, n) if name == "best_of_n" else Embedded(load_candidate(*where[name]), tokenizer, config.model.max_tokens)
        found[name] = simulate(engine, draw_talks(pack, conversations, "unseen", settings.seed), batch_size=settings.batch_size, max_replies=settings.max_replies,
                               sampling=Sampling(max_tokens=config.model.max_new_tokens), label=name)
        write_jsonl(talks, found[name])
    return found


def closed(mine: list[float], sft: list[float], ceiling: list[float], draws: int = 1000) -> dict | None:
    """The share of the way from SFT to the ceiling, with a 95 % interval from drawing customers anew; None where the ceiling is not above SFT."""
    rng, (a, b, c) = np.random.default_rng(0), (np.array(each) for each in (mine, sft, ceiling))
    if c.mean() <= b.mean():
        return None
    chosen = rng.integers(0, len(a), (draws, len(a)))
    gained, way = (a - b)[chosen].mean(1), (c - b)[chosen].mean(1)
    shares = np.where(way > 0, gained / np.where(way > 0, way, 1), np.nan)
    low, high = np.nanquantile(shares, [0.025, 0.975])
    return {"value": float((a - b).mean() / (c - b).mean()), "low": float(low), "high": float(high)}


def table(outcomes: dict[str, list[dict]], n: int) -> tuple[list[str], dict]:
    """Markdown lines, and the figures in them."""
    success = {name: [float(o["success"]) for o in each] for name, each in outcomes.items()}
    lines, figures = ["| candidate | success | over SFT on all [95 %, paired] | closed | violations | unasked deeds | reaches a human |", "|---|---|---|---|---|---|---|"], {}
    for name, each in outcomes.items():
        gain, low, high = paired_difference(success[name], success["sft"])
        row = {key: SIMULATED[key](each) for key in ("success", "violations", "unasked", "human_reach")}
        figures[name] = {**row, "over_sft": {"value": gain, "low": low, "high": high}, "closed": closed(success[name], success["sft"], success["ceiling"])}
        cells = [f"{row[key]['value']:.0%} [{row[key]['low']:.0%}, {row[key]['high']:.0%}]" for key in ("success", "violations", "unasked", "human_reach")]
        share = figures[name]["closed"]
        cell = "" if name in ("sft", "ceiling") or share is None else f"{share['value']:.0%} [{share['low']:.0%}, {share['high']:.0%}]"
        lines.append(f"| {NAMES[name].replace('best of n', f'best of {n}')} | {cells[0]} | {'' if name == 'sft' else f'{gain:+.1%} [{low:+.1%}, {high:+.1%}]'} | {cell} | {cells[1]} | {cells[2]} | {cells[3]} |")
    for better, other in (("ppo", "sft_top"), ("ppo", "dpo"), ("ppo_alone", "sft_top")):
        if better in success and other in success:
            gain, low, high = paired_difference(success[better], success[other])
            figures[better][f"over_{other}"] = {"value": gain, "low": low, "high": high}
            lines.append(f"\n{NAMES[better]} less {NAMES[other]}: {gain:+.1%} [{low:+.1%}, {high:+.1%}].")
    return lines, figures


def main(arguments: list[str]) -> dict:
    options = dict(argument.split("=", 1) for argument in arguments)
    run_dir, conversations, n = Path(options.pop("run_dir", "runs/dev")), int(options.pop("conversations", 500)), int(options.pop("n", 4))
    out = Path(options.pop("out", run_dir / "gain/gain.md"))
    config = recorded_config(run_dir, "ppo", [f"{key}={value}" for key, value in options.items()])
    for stage in ("dpo", "ppo"):
        if not (stage_dir(config, stage) / "adapter").is_dir():
            raise StageError(f"{run_dir} has no policy of {stage}: run the pipeline first (where PPO was refused, ppo/refusal.json says why)")
    if config.ppo.start != "dpo":
        raise StageError(f"{run_dir} was made with ppo.start={config.ppo.start}: PPO from SFT is trained here beside it, so give a run with ppo.start=dpo")
    quieten(config)
    tokenizer = load_tokenizer(config)
    folder = run_dir / "gain" / made_from(config, ("prepare", "sft", "reward", "dpo"), [f"{key}={value}" for key, value in options.items()])
    where = {name: (config, name) for name in ("sft", "dpo", "ppo")}
    where["sft_top"] = otherwise(config, folder / "sft_top", sft, ("prepare", "pretrain"), min_stars=TOP, full_parameter=False), "sft"
    where["ppo_alone"] = otherwise(config, folder / "ppo_alone", ppo, ("prepare", "pretrain", "sft", "reward"), start="sft"), "ppo"
    top = config.copy()
    top.run_dir = str(folder)
    where["ceiling"] = top, "ceiling"
    ceiling(config, tokenizer, folder)
    link(run_dir, folder, "pretrain")
    outcomes = measured(config, tokenizer, where, conversations, n, folder / "talks")
    lines, figures = table(outcomes, n)
    made = (f"{datetime.date.today()}, {conversations} simulated conversations a candidate with unseen wordings, one training (seed {config.seed}), intervals over customers: "
            f"{shown('benchmarks.gain', arguments)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(["# What learning from ratings is worth", "", made, "", *lines, ""]), encoding="utf-8")
    write_json(run_dir / "gain/gain.json", figures)
    print("\n".join(lines))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
