"""Stage `reward`: learn what ratings prefer. Several LoRA adapters with a score head each, on one base.

    reward/members/0 … n     adapters, each with a head (training/adapters.py): their mean, less their spread, is the reward
    reward/held_out/         one more, taught by other conversations, that no policy is trained against: is a rising reward real?
    reward/calibration.json  each model's mean and spread, and the temperature that makes sigmoid((r - r') / T) the chance that r is better
    reward/gate.json         what must hold before a policy may be trained against it, and whether it does
    reward/report.html       the same to look at, and the raters

A model learns from pairs (Bradley-Terry, with the gap in corrected stars as margin) and from single ratings (ordered logit: learned cut
points between the stars, shifted by what rater and ticket add), so that an archive with one reply per prompt can teach one too. Each starts
from the SFT adapter and goes on writing the good replies while it learns to judge (arXiv:2406.10216): what it reads for the one it judges by.
A conversation is one tree (training/trees.py): its history is read once for all its replies and drafts.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from data_prep.artifacts import StageError, stage_output
from data_prep.conversation import write_json
from training import reward_report
from training.adapters import HEAD, Head, OneBase, index, log_probs_of
from training.ensemble import adapter_name, load_rewards
from training.judgements import STARS, Judged, check, deal, read, spoil
from training.lora import adding
from training.models import load_base, load_sft, load_tokenizer, train, trainer_arguments
from training.reward_gate import MOST, judge, often, tolerance
from training.trees import collate
from training.workers import at_once, side_by_side

SPOILT = 3.0         # stars by which a reply is better than itself spoiled
LEARNED = "learned.safetensors"
PROBES = 8          # conversations that a saved model must score as the trained one did


def run(config) -> None:
    tokenizer, settings = load_tokenizer(config), config.reward
    strange = sorted(set(settings.sources) - {"pairs", "ratings"})
    if strange or not settings.sources or not 0 <= settings.contested < 1:
        raise StageError(f"reward.sources={list(settings.sources)} must be pairs, ratings or both, and reward.contested={settings.contested} a share from 0 to less than 1")
    judged, dropped = read(config, tokenizer, "train")
    check(judged)
    others, *rest = deal(judged, settings.members + 1)
    names = [f"members/{k}" for k in range(settings.members)] + ["held_out"]
    with stage_output(config, "reward") as out:
        taught, watching = (often(tokenizer, part, settings.contested) for part in ([one for part in rest for one in part], others))
        parts = [taught] * settings.members + [watching]
        curves = learn_all(config, parts, [Path(out) / name for name in names])
        model = load_rewards(config, tokenizer, Path(out))
        check_reload(model, Path(out), names, parts)
        held_out: list[Judged] = []
        for split in ("test", "validation"):
            more, too_long = read(config, tokenizer, split, MOST - sum(len(j.pairs) for j in held_out))
            held_out, dropped = held_out + more, dropped + too_long
        found = judge(model, spoil(tokenizer, held_out, random.Random(config.seed)), judged, settings)
        write_json(out / "calibration.json", found["calibration"])
        write_json(out / "gate.json", found["gate"])
        reward_report.write(config, Path(out) / "report.html", found)
        count = sum(len(j.pairs) for j in judged), sum(len(j.ratings) for j in judged)
        metrics = {"pairs": count[0], "ratings": count[1], "dropped_too_long": dropped, "loss": [curve[-1]["loss"] for curve in curves], **found["metrics"]}
        write_json(out / "metrics.json", metrics)
        out.summary(f"{count[0]} pairs and {count[1]} ratings → {found['line']}; {dropped} too long", **metrics)


# ---------------------------------------------------------------------------------------------------------------------
# Learning
# ---------------------------------------------------------------------------------------------------------------------


def ordered_logit(rewards: torch.Tensor, stars: torch.Tensor, shift: torch.Tensor, cuts: torch.Tensor) -> torch.Tensor:
    """-log P(stars) of each rating, (N,): P(at most k stars) = sigmoid(cut_k - reward - shift) (McCullagh 1980; arXiv:2603.02232).

    `cuts` are the first cut point and the logs of the steps to the next ones, so that they stay in order.
    """
    at = torch.cat([cuts[:1], cuts[:1] + cuts[1:].exp().cumsum(0)])
    below = torch.cat([at.new_tensor([-1e4]), at, at.new_tensor([1e4])])
    latent = rewards + shift
    upper, lower = torch.sigmoid(below[stars] - latent), torch.sigmoid(below[stars - 1] - latent)
    return -torch.log((upper - lower).clamp_min(1e-7))


class RewardModel(torch.nn.Module):
    """An adapter with its head and what only learning needs: the cut points between the stars, and how much a star of severity shifts a reward."""

    def __init__(self, network: PeftModel):
        super().__init__()
        self.network, self.head = network, Head(network.config.hidden_size).to(network.device)
        self.cuts = torch.nn.Parameter(torch.tensor([-2.0] + [0.0] * (STARS - 2)))       # at -2, -1, 0 and 1
        self.shift = torch.nn.Parameter(torch.ones(()))

    def forward(self, tokens: dict, ends: torch.Tensor, said: torch.Tensor, **_) -> tuple[torch.Tensor, torch.Tensor]:
        """(rewards of the replies (L,), log-probs of their tokens (N,)): see `index`."""
        network = self.network.get_base_model()
        hidden = network.model(**tokens, use_cache=False).last_hidden_state
        log_probs, _ = log_probs_of(hidden, network.lm_head, said)
        return self.head(hidden[ends[:, 0], ends[:, 1]], log_probs, said[:, 3]), log_probs

    def gradient_checkpointing_enable(self, **settings) -> None:
        self.network.enable_input_require_grads()
        self.network.gradient_checkpointing_enable(**settings)

    def learned(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}


class RewardLearner(Trainer):
    """transformers' Trainer with Bradley-Terry and margins over pairs, ordered logit over single ratings, and the loss of writing the good replies."""

    def __init__(self, *args, settings, **kwargs):
        super().__init__(*args, **kwargs)
        self.settings = settings

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rewards, log_probs = model(inputs["tokens"], inputs["ends"], inputs["said"])
        better, worse, gaps = inputs["pairs"]
        at, stars, offsets = inputs["ratings"]
        good = inputs["good"][inputs["said"][:, 3]]
        loss = -self.settings.language * log_probs[good].sum() / max(1, int(good.sum()))
        if len(better):
            loss = loss - torch.nn.functional.logsigmoid(rewards[better] - rewards[worse] - self.settings.margin * gaps).mean()
            loss = loss + self.settings.centre * (rewards[better] + rewards[worse]).square().mean()
        if len(at):
            learned = self.accelerator.unwrap_model(model)
            loss = loss + ordered_logit(rewards[at], stars, learned.shift * offsets, learned.cuts).mean()
        return (loss, {"loss": loss}) if return_outputs else loss

    def _save(self, output_dir=None, state_dict=None):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file(self.accelerator.unwrap_model(self.model).learned(), Path(output_dir) / LEARNED)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self.accelerator.unwrap_model(self.model).load_state_dict(load_file(Path(resume_from_checkpoint) / LEARNED), strict=False)


def batch(judged: list[Judged], pad: int) -> dict:
    """A batch of conversations for RewardLearner: `tokens`, `ends` and `said` (see `index`), pairs and ratings by number of reply, and which replies are good."""
    first, pairs, ratings, good = 0, [], [], set()
    for one in judged:
        pairs += [(first + better, first + worse, gap) for better, worse, gap in one.pairs] + [(first + better, first + worse, SPOILT) for better, worse, _ in one.spoiled]
        ratings += [(first + at, stars, offset) for at, stars, offset in one.ratings]
        good |= {first + at for at in one.good()}
        first += len(one.tree.leaves)

    def columns(rows: list[tuple], *kinds: torch.dtype) -> list[torch.Tensor]:
        return [torch.tensor([r[k] for r in rows], dtype=kind) for k, kind in enumerate(kinds)]

    return {"tokens": collate([one.tree for one in judged], pad), **index([one.tree for one in judged], [one.replies() for one in judged]),
            "pairs": columns(pairs, torch.long, torch.long, torch.float32), "ratings": columns(ratings, torch.long, torch.long, torch.float32),
            "good": torch.tensor([reply in good for reply in range(first)])}


def learn_all(config, parts: list[list[Judged]], folders: list[Path]) -> list[list[dict]]:
    """Train every reward model: their curves."""
    base = load_base(config) if at_once(config, len(parts)) == 1 else None         # one for all that learn in this process
    return side_by_side(config, learn, [(part, folder, config.seed + k, base) for k, (part, folder) in enumerate(zip(parts, folders, strict=True))])


def learn(config, judged: list[Judged], folder: Path, seed: int, base: torch.nn.Module | None = None) -> list[dict]:
    """Train one reward model and save it with its head; a finished one is not trained again. A `base` that is given is left as it came. Returns its curve."""
    if (folder / "probe.json").is_file():
        return json.loads((folder / "curve.json").read_text())
    tokenizer, model = load_tokenizer(config), RewardModel(adding(load_sft(config, base)))
    arguments = trainer_arguments(config, "reward", folder, TrainingArguments, remove_unused_columns=False, train_sampling_strategy="sequential", label_names=["ends"])
    rng, read_at_most = random.Random(seed), arguments.max_steps * arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    drawn = rng.sample(judged, min(len(judged), read_at_most)) if arguments.max_steps > 0 else judged
    trainer = RewardLearner(model, arguments, train_dataset=order(spoil(tokenizer, drawn, rng), arguments.per_device_train_batch_size, rng),
                            data_collator=lambda rows: batch(rows, tokenizer.pad_token_id), settings=config.reward)
    curve = train(trainer, folder)
    model.network.save_pretrained(folder)
    save_file({key: value.cpu() for key, value in model.head.state_dict().items()}, folder / HEAD)
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)         # else it would score under autocast, as it learned
    with torch.no_grad():
        probe = trainer._prepare_inputs(batch(judged[:PROBES], tokenizer.pad_token_id))
        write_json(folder / "probe.json", model.eval()(probe["tokens"], probe["ends"], probe["said"])[0].tolist())
    model.network.unload()
    return curve


def check_reload(model: OneBase, out: Path, names: list[str], parts: list[list[Judged]]) -> None:
    """Raises: StageError when a saved reward model scores otherwise than the trained one did: a head that is silently not saved is a known trap."""
    for name, part in zip(names, parts, strict=True):
        probes = part[:PROBES]
        scores = torch.cat(model.scores(adapter_name(name), [one.tree for one in probes], [one.replies() for one in probes]))
        apart = (scores - torch.tensor(json.loads((out / name / "probe.json").read_text()))).abs().max()
        if apart > tolerance(model) * max(1.0, float(scores.abs().max())):
            raise StageError(f"{out / name} scores differently after loading (by {apart:.4f}): was its head saved?")


def order(judged: list[Judged], size: int, rng: random.Random) -> list[Judged]:
    """Batches of like length in random order, so that little is padding."""
    judged = rng.sample(judged, len(judged))
    near = [sorted(judged[i:i + 16 * size], key=lambda j: len(j.tree.ids)) for i in range(0, len(judged), 16 * size)]
    batches = [some[i:i + size] for some in near for i in range(0, len(some), size)]
    rng.shuffle(batches)
    return [one for some in batches for one in some]
