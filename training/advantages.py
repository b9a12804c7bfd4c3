"""Of what was said, what was better than expected: advantages of a reply's tokens, against a value model or against other replies to the same prompt."""

from __future__ import annotations

from statistics import fmean

import torch


def gae(values: list[torch.Tensor], costs: list[torch.Tensor], scores: list[float], lam: float, turn_discount: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns) of an episode's tokens, flat, by generalised advantage estimation.

    `values` and `costs` (in KL, subtracted) are by turn, `scores` stand on the turns' last tokens. Nothing is discounted within a reply; from one reply
    to the next by `turn_discount`, 0 making each reply an episode of its own."""
    advantages: list[float] = []
    following, carried = 0.0, 0.0
    for value, cost, score in zip(reversed(values), reversed(costs), reversed(scores), strict=True):
        discount, reward = turn_discount, score
        for v, c in zip(reversed(value.tolist()), reversed(cost.tolist()), strict=True):
            carried = reward - c + discount * following - v + discount * lam * carried
            advantages.append(carried)
            following, discount, reward = v, 1.0, 0.0
    made = torch.tensor(advantages[::-1])
    return made, made + torch.cat(values)


def at_branches(replies: list[list[int]], scores: list[float]) -> torch.Tensor:
    """The advantages of the tokens of some replies to one prompt, flat: by how much those that go on with a token score better, on average, than all that were alike up to it.

    A token where drafts part is credited with what it decides, as a tree search would have it; where all are alike nothing is learned, and from where one stands alone its
    first word bears whatever goes wrong later in it, a miscopied digit or a missing end. A reply's sum up to its score less the mean of all
    (each other's baseline, as in RLOO, arXiv:2402.14740). A value model that has seen few hundred conversations says less of where a token leads than three other drafts."""
    made = []
    for reply in replies:
        alike = list(range(len(replies)))
        for place, token in enumerate(reply):
            still = [k for k in alike if len(replies[k]) > place and replies[k][place] == token]
            made.append(fmean(scores[k] for k in still) - fmean(scores[k] for k in alike))
            alike = still
    return torch.tensor(made)
