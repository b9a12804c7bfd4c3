"""What is measured of a policy in training, and what can go wrong as it shows in the curve: each alarm says symptom, likely cause, and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import torch

from training.group import Group

WINDOW = 8          # steps over which a trend counts at most; half of those there are, where they are fewer
LEAST = 4           # of fewer it says nothing


def measured(samples: list, watch: Callable, group: Group) -> dict:
    """What is worth logging of a step's samples (training/ppo.py), over all processes: means over replies, drafts among them, `explained` (by the values, of the returns' variance) of this process, where there is a value model."""
    errors, returns = (torch.cat([torch.zeros(0), *each]) for each in ([s.returns - s.values for s in samples], [s.returns for s in samples]))
    other = float(watch([s.tree for s in samples], [s.replies for s in samples]).sum()) if samples else 0.0
    n, turns, talks, tokens, kl, reward, held_out, cut = group.sum(sum(len(s.scores) for s in samples), sum(s.turns for s in samples), len(samples), sum(len(s.old) for s in samples), sum(s.kl for s in samples),
                                                            sum(sum(s.scores) for s in samples), other, sum(s.cut_off for s in samples))
    return {"kl": kl / n, "reward": reward / n, "held_out": held_out / n, "reply_tokens": tokens / n, "cut_off": cut / n, "replies": turns / talks,
            **({"explained": 1 - float(errors.var() / returns.var().clamp_min(1e-8))} if len(returns) > 1 else {})}


def alarms(curve: list[dict], seen: set[str]) -> list[str]:
    """Lines for what newly shows at the end of the curve; `seen` remembers which alarms have been raised, each is raised once."""
    first, last = curve[0], curve[-1]
    found = []

    def raise_once(name: str, holds: bool, symptom: str, cause: str, then: str) -> None:
        if holds and name not in seen:
            seen.add(name)
            found.append(f"warning, step {last['step']}: {symptom}. Likely cause: {cause}. Next: {then}")

    raise_once("length", last["reply_tokens"] > 1.5 * first["reply_tokens"], f"replies have grown from {first['reply_tokens']:.0f} to {last['reply_tokens']:.0f} tokens",
               "the reward prefers long replies", "look at length_correlation in reward/gate.json; ppo.beta higher")
    raise_once("cut_off", last["cut_off"] > 0.1 and last["cut_off"] > 2 * first["cut_off"], f"{last['cut_off']:.0%} of replies do not end", "the policy has lost the end token",
               "ppo.missing_end_penalty higher, ppo.learning_rate lower")
    raise_once("replies", last["replies"] > 1.5 * first["replies"], f"conversations have grown from {first['replies']:.1f} to {last['replies']:.1f} replies",
               "each reply is rewarded and more of them more so, or customers are not understood", "read some talks (ppo stops earlier with ppo.kl_budget lower); with ppo.drafts=1, ppo.turn_discount=0")
    if "clipped" in last:
        raise_once("clipped", last["clipped"] > 0.3, f"the clip cuts {last['clipped']:.0%} of tokens", "updates are too large", "ppo.learning_rate lower, or ppo.epochs=1")
        raise_once("entropy", last["entropy"] < 0.3 * first.get("entropy", 0), f"entropy has fallen from {first.get('entropy', 0):.2f} to {last['entropy']:.2f} nats",
                   "the policy is about to say one thing only", "ppo.beta higher, fewer steps")
    window = min(WINDOW, len(curve) // 2)
    if window >= LEAST:
        gain, other = (mean(e[key] for e in curve[-window:]) - mean(e[key] for e in curve[-2 * window:-window]) for key in ("reward", "held_out"))
        raise_once("parted", gain > 0.02 and other < -0.02, f"the reward rose by {gain:.2f} over {window} steps while the held-out reward model fell by {-other:.2f}",
                   "the policy exploits the ensemble", "stop about here (ppo.steps), ppo.kl_target lower, or reward.spread_penalty higher")
    return found
