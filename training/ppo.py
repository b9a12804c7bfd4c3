"""Stage `ppo`: proximal policy optimisation against the learned reward, one frozen base under all that takes part (Schulman et al. 2017, arXiv:1707.06347).

    ppo/adapter/       the policy        ppo/value/     the value model, if any        ppo/curve.json     every step
    ppo/refusal.json   instead of all that, where the reward model did not pass its gate

A step: the policy talks to customers; the reward ensemble scores each reply where it stands; what differs from the SFT adapter costs (KL); some epochs of
clipped updates. A reply is one action's worth of tokens: its reward stands on its last token. Where several are drawn to a prompt (`drafts`) they are each
other's baseline, and a token is credited with what it decides (KL too is felt where drafts part, not where all agree); beside that all of a prompt's replies are held to the
step's mean (`prompt_weight`), or where all say the same wrong thing nothing would be learned. Where one is drawn, advantages are by GAE
(arXiv:1506.02438) against a value model, and `turn_discount` says how much of what follows in the conversation is credited to a reply. The world's truth takes
no part: customers answer, tools return, and the ensemble alone says what was good. Another reward model, which teaches nothing, watches.
The policy is the one that draws: at `temperature`, as its log-probs and its distance from SFT are taken too. What goes out is the average of its weights and
those it began with (`average`): most of what was learned stays, most of what was forgotten comes back (arXiv:2309.06256, as in dpo.py).

Several processes: no DistributedDataParallel, which would not see the swapped adapters. Gradients are summed by hand, every mean is over all processes.
"""

from __future__ import annotations

import functools
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from tqdm import tqdm

from data_prep.artifacts import StageError, process_count, require, stage_dir, stage_output
from data_prep.company.pack import load_pack
from data_prep.conversation import read_jsonl, write_json
from training.adapters import OneBase
from training.advantages import at_branches, gae
from training.alarms import alarms, measured
from training.ensemble import held_out_rewards, load_rewards, rewards
from training.group import Group
from training.models import last_checkpoint, load_tokenizer, tell, track
from training.rollouts import Episode, Local, Vllm, Written, answer, check_sampler, play, some_of, well_rated
from training.trees import Tree, in_batches


@dataclass
class Sample:
    """One episode as PPO sees it; lists are by turn, tensors of a turn have one number a token of its reply."""

    tree: Tree
    replies: list[list[int]]
    old: torch.Tensor              # (N,) log-probs of all its replies' tokens when they were drawn
    values: torch.Tensor           # (N,); (0,) without a value model
    advantages: torch.Tensor       # (N,)
    returns: torch.Tensor          # (N,); (0,) without a value model
    surprise: float                # by how much its best reply was better than expected, or all those to one prompt worse than others'
    scores: list[float]            # of each reply
    kl: float                      # nats, all its replies together
    cut_off: int                   # replies without an end
    turns: int                     # replies that were said, drafts beside them not counted


# ---- The mathematics -----------------------------------------------------------------------------------------------


def whiten(samples: list[Sample], group: Group, centred: bool) -> None:
    """Advantages with variance 1, and mean 0 where they are to be `centred`, over the tokens of all processes.

    Those beside drafts are not: they are measured against other replies where they are made. Moved by the mean over tokens they taught to say even what is always wrong more surely."""
    every = torch.cat([s.advantages for s in samples]).double()
    n, total, squares = group.sum(len(every), every.sum(), every.square().sum())
    mean, std = total / n, math.sqrt(max(squares / n - (total / n) ** 2, 1e-12))
    for sample in samples:
        sample.advantages = ((sample.advantages - mean * centred) / std).float()


def policy_loss(log_probs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(the clipped surrogate's loss of each token, whether the clip cut it)."""
    ratio = (log_probs - old).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), clipped > plain


def value_loss(values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """Half the squared error of each token's value, no better than with a value that moved by at most `clip`."""
    clipped = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def adapted(beta: float, kl: float, target: float) -> float:
    """The KL coefficient for the next step: up where the policy went further than wanted, down where less (Ziegler et al. 2019, arXiv:1909.08593)."""
    return beta * (1 + 0.2 * max(-1.0, min(1.0, kl / target - 1)))


# ---- One step ------------------------------------------------------------------------------------------------------

Reward = Callable[[list[Episode], list[Tree], list[list[list[int]]]], torch.Tensor]      # of each reply, flat


def appraise(model: OneBase, episodes: list[Episode], reward: Reward, beta: float, settings, group: Group, before: list[torch.Tensor] | None = None) -> list[Sample]:
    """Score what was said and turn it into samples with advantages; `before` are the policy's weights of the step before, for who drew elsewhere."""
    packed = [episode.tree() for episode in episodes]
    trees, replies = [tree for tree, _ in packed], [mine for _, mine in packed]
    scores = reward(episodes, trees, replies)
    ended = torch.tensor([turn.reply[-1] == model.tokenizer.eos_token_id for episode in episodes for turn in episode.turns])
    scores = scores - settings.missing_end_penalty * ~ended

    def log_probs(name: str, temperature: float = settings.temperature) -> list[torch.Tensor]:
        return model.by_token(name, trees, replies, lambda t, r: model.log_probs(t, r, temperature)[0], settings.batch_tokens)

    old, ref = log_probs("policy"), log_probs("ref")
    if any(turn.drawn for episode in episodes for turn in episode.turns):
        now = log_probs("policy", 1.0)         # as vLLM gives them by default (raw), whatever it draws at
        with model.having("policy", before or model.weights("policy")):
            check_sampler(episodes, now, log_probs("policy", 1.0), settings.max_disagreement)
    with_value = "value" in model.heads
    values = model.by_token("value", trees, replies, model.values, settings.batch_tokens) if with_value else [torch.zeros(0)] * len(trees)
    total, count = group.sum(scores.sum(), len(scores))
    samples, first = [], 0
    for i, tree in enumerate(trees):
        lengths = [len(places) for places in replies[i]]
        mine, unended = scores[first:first + len(lengths)].tolist(), int((~ended[first:first + len(lengths)]).sum())
        apart = old[i] - ref[i]
        costs, places = list((beta * apart).split(lengths)), episodes[i].places()
        if with_value:
            advantages, returns = gae(list(values[i].split(lengths)), costs, mine, settings.lam, settings.turn_discount)
            surprise = max(float(each[0]) for each in advantages.split(lengths))
        else:
            net = [score - float(cost.sum()) for score, cost in zip(mine, costs, strict=True)]
            means = [fmean(net[k] for k in some) for some in places]
            above = [settings.prompt_weight * (mean - total / count) for mean in means]
            advantages = torch.cat([at_branches([episodes[i].turns[k].reply for k in some], [net[k] for k in some]) + each for some, each in zip(places, above, strict=True)])
            surprise = max(max(net[k] for k in some) - mean + max(0.0, -each) for some, mean, each in zip(places, means, above, strict=True))
            returns = torch.zeros(0)
        samples.append(Sample(tree, replies[i], old[i], values[i], advantages, returns, surprise, mine, float(apart.sum()), unended, len(places)))
        first += len(lengths)
    whiten(samples, group, centred=with_value)
    return samples


def most_surprising(numbers: list[int], samples: list[Sample], every: list[int], most: int, group: Group) -> list[int]:
    """Of all processes' conversations `every`, the `most` that surprise the most (`Sample.surprise`); `numbers` are this process's, of its samples. Many
    customers are served well soon, some not whatever is tried: to meet the others again is to learn where something can be learned (arXiv:2010.03934)."""
    mine = {number: sample.surprise for number, sample in zip(numbers, samples, strict=True)}
    best = dict(zip(every, group.sum(*(mine.get(number, 0.0) for number in every)), strict=True))
    return sorted(every, key=best.get, reverse=True)[:most]


def update(model: OneBase, optimizer: torch.optim.Optimizer, samples: list[Sample], settings, group: Group, good: Iterator[Written] | None = None) -> dict:
    """Some epochs of clipped updates over the samples, in minibatches that keep their order, so that several processes do what one would. Beside each some of the
    archive's `good` replies, to go on writing (PPO-ptx, arXiv:2203.02155): else what is learned of one concern spreads to others that few customers of a step have."""
    policy, value = model.parameters("policy"), model.parameters("value")
    logged = {"policy_loss": 0.0, "clipped": 0.0, "entropy": 0.0, **({"value_loss": 0.0} if value else {})}
    size, rounds = math.ceil(len(samples) / settings.minibatches), 0
    for _ in range(settings.epochs):
        for start in range(0, len(samples), size):
            chosen = samples[start:start + size]
            (n,) = group.sum(sum(len(s.old) for s in chosen))
            sums = dict.fromkeys(logged, 0.0)
            for parameter in policy + value:
                parameter.grad = torch.zeros_like(parameter)
            for batch in in_batches([s.tree for s in chosen], settings.batch_tokens):
                mine = [chosen[i] for i in batch]
                trees, replies = [s.tree for s in mine], [s.replies for s in mine]
                old, advantages = (torch.cat([getattr(s, name) for s in mine]).to(model.device) for name in ("old", "advantages"))
                with model.using("policy"):
                    log_probs, entropy = model.log_probs(trees, replies, settings.temperature)
                    losses, cut = policy_loss(log_probs, old, advantages, settings.clip)
                    (losses.sum() / n).backward()
                told = {"policy_loss": losses, "clipped": cut, "entropy": entropy}
                if value:
                    before, returns = (torch.cat([getattr(s, name) for s in mine]).to(model.device) for name in ("values", "returns"))
                    with model.using("value"):
                        told["value_loss"] = value_loss(model.values(trees, replies), before, returns, settings.value_clip)
                        (told["value_loss"].sum() / n).backward()
                for name, each in told.items():
                    sums[name] += float(each.detach().sum())
            if good and (written := next(good, None)):
                with model.using("policy"):
                    (-settings.language / group.size * model.log_probs(*written)[0].mean()).backward()
            group.sum_gradients(policy + value)
            torch.nn.utils.clip_grad_norm_(policy, settings.max_grad_norm)
            torch.nn.utils.clip_grad_norm_(value, settings.max_grad_norm)
            optimizer.step()
            rounds += 1
            for name, total in zip(sums, group.sum(*sums.values()), strict=True):
                logged[name] += total / n
    return {name: total / rounds for name, total in logged.items()}


# ---- The run -------------------------------------------------------------------------------------------------------


def run(config) -> None:
    source, settings = require(config, "reward", "ppo"), config.ppo
    if settings.start not in ("sft", "dpo") or not 0 <= settings.again < 1 or int(settings.again * settings.episodes) >= settings.episodes:
        raise StageError(f"ppo.start={settings.start} must be sft or dpo, and ppo.again={settings.again} a share from 0 to less than 1, so that new customers come at every step")
    if not 0 < settings.average <= 1:
        raise StageError(f"ppo.average={settings.average} must be above 0, where nothing of what was learned would be left, and at most 1")
    if settings.episodes % process_count():
        raise StageError(f"ppo.episodes={settings.episodes} are not as many for each of {process_count()} processes: set a multiple of {process_count()}")
    if settings.drafts > 1 and settings.turn_discount:
        raise StageError(f"ppo.turn_discount={settings.turn_discount} with ppo.drafts={settings.drafts}: nothing follows a draft that was not said; set one of them to 0 and 1")
    gate = json.loads((source / "gate.json").read_text())
    with stage_output(config, "ppo") as out:
        if not gate["passed"]:
            if out.is_main:
                write_json(out / "refusal.json", {"reason": gate["why"], "gate": gate["checks"]})
                out.summary(f"refused: the reward model did not pass its gate ({gate['why']}); a policy would learn its mistakes. See {source}/gate.json", refused=gate["why"])
            return
        tokenizer, group = load_tokenizer(config), Group()
        model = load_players(config, tokenizer)
        calibration = json.loads((source / "calibration.json").read_text())
        curve = train_policy(config, model, lambda _, trees, replies: rewards(model, calibration, trees, replies), functools.partial(held_out_rewards, model, calibration), Path(out), group)
        if group.rank == 0:
            shutil.rmtree(out / "vllm", ignore_errors=True)         # the adapter that a vLLM read last
            model.save("policy", out / "adapter")
            if "value" in model.heads:
                model.save("value", out / "value")
            write_json(out / "curve.json", curve)
            stopped, within = curve[-1].get("stopped"), [entry for entry in curve if "stopped" not in entry]
            first, last = within[0], within[-1]          # of what is saved, not of what was given up
            facts = {"steps": len(curve) - 1, "kl": last["kl"], "kl_budget": config.ppo.kl_budget, "stopped": stopped,
                     **{f"{name}_{when}": entry[name] for name in ("reward", "held_out") for when, entry in (("first", first), ("last", last))}}
            write_json(out / "metrics.json", facts)
            out.summary(f"{len(curve) - 1} steps of {config.ppo.episodes} conversations → reward {first['reward']:.2f} to {last['reward']:.2f}, held-out reward "
                        f"{first['held_out']:.2f} to {last['held_out']:.2f}, {last['kl']:.2f} nats a reply from sft at temperature {config.ppo.temperature}" + (f"; stopped: {stopped}" if stopped else ""), **facts)


def load_players(config, tokenizer) -> OneBase:
    """The base with policy (where it starts: `ppo.start`) and reference (SFT), the reward models, and where one reply is drawn to a prompt the value model (a reward model's adapter, its head set to 0)."""
    model, start = OneBase(config, tokenizer), stage_dir(config, config.ppo.start) / "adapter"
    if not start.is_dir():
        raise StageError(f"ppo.start={config.ppo.start}, but {start} is not there: run that stage first, or set ppo.start=sft to go on from SFT (where there are no pairs for DPO, say)")
    model.add("policy", start)
    model.add("ref", require(config, "sft", "ppo") / "adapter")
    load_rewards(config, tokenizer, require(config, "reward", "ppo"), model)
    if config.ppo.drafts == 1:
        model.add("value", require(config, "reward", "ppo") / "members/0")
        torch.nn.init.zeros_(model.heads["value"].linear.weight)
        torch.nn.init.zeros_(model.heads["value"].linear.bias)
    return model


def train_policy(config, model: OneBase, reward: Reward, watch: Callable, out: Path, group: Group) -> list[dict]:
    """Steps until there are enough or the KL budget is spent; goes on from the last checkpoint. Returns the curve; the policy is in the model."""
    settings, tokenizer = config.ppo, model.tokenizer
    generate = (Vllm(settings.vllm, model, "policy", out / "vllm", config.model.max_new_tokens, settings.temperature) if settings.vllm
                else Local(model, "policy", config.model.max_new_tokens, settings.temperature, settings.rollout_batch))
    pack = load_pack(config.company) if config.company else None
    rows = [] if pack else [row for _, row in read_jsonl(require(config, "prepare", "ppo") / "prompts/train.jsonl")]
    good = well_rated(config) if settings.language else []
    optimizer = torch.optim.AdamW([{"params": model.parameters("policy"), "lr": settings.learning_rate}, {"params": model.parameters("value"), "lr": settings.value_learning_rate}],
                                  betas=(0.9, 0.95), weight_decay=0.0)
    checkpoint, start = last_checkpoint(out / "checkpoints", "state.json"), model.weights("policy")
    curve, beta, seen, again, last_within = resume(model, optimizer, Path(checkpoint)) if checkpoint else ([], settings.beta, set(), [], start)
    if group.rank == 0 and not curve:
        track(config, "ppo")
    for step in tqdm(range(len(curve), settings.steps + 1), desc="ppo", unit="step", initial=len(curve), total=settings.steps + 1, disable=group.rank > 0):
        if step == settings.steps:           # the last round only measures where the policy has come to
            again = []
            model.put("policy", averaged(start, model.weights("policy"), settings.average))
        rng = random.Random(f"{config.seed}-{step}")
        every = [*range(step * settings.episodes, (step + 1) * settings.episodes - len(again)), *again]
        rng.shuffle(every)          # so that every minibatch holds new customers and others
        numbers = every[group.rank::group.size]
        room = min(config.model.max_new_tokens, config.model.max_tokens // 2)
        generate.refresh()
        drawn = rng.getrandbits(31) + group.rank
        episodes = (play(generate, tokenizer, pack, numbers, config.seed, drawn, settings.drafts, settings.max_replies, config.model.max_tokens, room) if pack
                    else answer(generate, tokenizer, rows, numbers, config.seed, drawn, settings.drafts, config.model.max_tokens, room))
        samples = appraise(model, episodes, reward, beta, settings, group, last_within)
        entry = {"step": step, **measured([s for s, number in zip(samples, numbers, strict=True) if number not in again], watch, group), "beta": beta}
        if not entry["kl"] <= settings.kl_budget:        # no number is not within it either
            if not curve:
                raise StageError(f"PPO begins {entry['kl']:.2f} nats a reply from sft, more than ppo.kl_budget={settings.kl_budget}: set ppo.start=sft, or a larger budget")
            model.put("policy", averaged(start, last_within, settings.average))
            curve.append({**entry, "stopped": f"{entry['kl']:.2f} nats a reply from sft, more than ppo.kl_budget={settings.kl_budget}. What goes out is of the last policy within it. "
                                              "Likely cause: updates are too large. Next: ppo.learning_rate lower, or ppo.beta higher"})
            break
        last_within = model.weights("policy")
        again = most_surprising(numbers, samples, every, int(settings.again * settings.episodes), group)
        if step < settings.steps:
            for group_of, rate in zip(optimizer.param_groups, (settings.learning_rate, settings.value_learning_rate), strict=True):
                group_of["lr"] = rate * min(1.0, (step + 1) / max(1, settings.warmup)) * (1 - step / settings.steps * (1 - settings.final_rate))
            entry |= update(model, optimizer, samples, settings, group, some_of(good, settings.language_batch, tokenizer, config.model.max_tokens, rng) if good else None)
            beta = adapted(beta, entry["kl"], settings.kl_target)
        curve.append(entry)
        if group.rank == 0:
            for line in alarms(curve, seen):
                tqdm.write(line)
            tell(config, "ppo", entry)
            if (step + 1) % settings.save_steps == 0:
                save(model, optimizer, last_within, {"curve": curve, "beta": beta, "seen": sorted(seen), "again": again}, out / "checkpoints")
    return curve


def averaged(start: list[torch.Tensor], end: list[torch.Tensor], share: float) -> list[torch.Tensor]:
    return [torch.lerp(begun, own, share) for begun, own in zip(start, end, strict=True)]


def save(model: OneBase, optimizer: torch.optim.Optimizer, good: list[torch.Tensor], state: dict, folder: Path) -> None:
    """A checkpoint in the place of the one before; `good` is the last policy within the budget. Random numbers come from seed and step: none need be kept."""
    fresh = folder / f"checkpoint-{len(state['curve'])}"
    fresh.mkdir(parents=True, exist_ok=True)
    torch.save({"policy": model.parameters("policy"), "value": model.parameters("value"), "good": good, "optimizer": optimizer.state_dict()}, fresh / "weights.pt")
    write_json(fresh / "state.json", state)
    for other in folder.glob("checkpoint-*"):
        if other != fresh:
            shutil.rmtree(other)


def resume(model: OneBase, optimizer: torch.optim.Optimizer, folder: Path) -> tuple[list[dict], float, set[str], list[int], list[torch.Tensor]]:
    saved, state = torch.load(folder / "weights.pt", map_location=model.device, weights_only=True), json.loads((folder / "state.json").read_text())
    model.put("policy", saved["policy"])
    model.put("value", saved["value"])
    optimizer.load_state_dict(saved["optimizer"])
    return state["curve"], state["beta"], set(state["seen"]), state["again"], saved["good"]
