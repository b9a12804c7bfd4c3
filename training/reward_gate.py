"""Is a reward model good enough to train a policy against? Measured on conversations of customers whom it never saw.

A policy finds every weakness of its reward, so what is wrong here comes back as behaviour. Below its gate nothing is trained against it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch

from data_prep.statistics import paired_difference, share
from training.adapters import OneBase
from training.ensemble import combined, members
from training.judgements import Judged, kind, wording
from training.trees import grow

BINS = 10
FEWEST = 2000            # pairs for a calibration error that means something
MOST = 2400              # held-out pairs that are judged: more would not tell much more
PROBED = 64              # conversations on which batch, padding and order must not matter
WORDS = 2048             # columns of the bag of words; tokens are hashed into them
DRAWS = 400


@dataclass
class Pair:
    """Two replies of which the first was judged better: where each stands, its tokens, and the gap in stars."""

    better: tuple[int, int]      # conversation, leaf
    worse: tuple[int, int]
    gap: float
    raters: list[list[str]]
    said: tuple[list[int], list[int]]


def pairs_of(judged: list[Judged]) -> list[Pair]:
    """The pairs within one prompt; where there is none, replies to different customers with the same kind of ticket, two stars apart."""
    found = [Pair((i, better), (i, worse), gap, raters, (one.reply(better), one.reply(worse)))
             for i, one in enumerate(judged) for (better, worse, gap), raters in zip(one.pairs, one.raters, strict=True)]
    if found:
        return found
    by_topic = defaultdict(list)
    for i, one in enumerate(judged):
        by_topic[one.topic] += [((i, at), stars - offset) for at, stars, offset in one.ratings]
    for rated in by_topic.values():
        ordered = sorted(rated, key=lambda r: r[1])
        for (low, few), (high, many) in zip(ordered, ordered[len(ordered) // 2:], strict=False):
            if many - few >= 2 and low[0] != high[0]:
                found.append(Pair(high, low, many - few, [[], []], (judged[high[0]].reply(high[1]), judged[low[0]].reply(low[1]))))
    return found


def gaps(reward: np.ndarray, judged: list[Judged], pairs: list[tuple[tuple[int, int], tuple[int, int]]]) -> np.ndarray:
    """By how much the first reply's reward is above the second one's, of pairs given by conversation and leaf; `reward` holds all leaves', flat."""
    first = np.cumsum([0, *(len(one.lengths) for one in judged)])
    return np.array([reward[first[i] + better] - reward[first[j] + worse] for (i, better), (j, worse) in pairs])


def judge(model: OneBase, held_out: list[Judged], train: list[Judged], settings) -> dict:
    """Everything the gate asks: {"calibration", "gate", "metrics", "line"}."""
    trees, replies = [one.tree for one in held_out], [one.replies() for one in held_out]
    scores = {name: torch.cat(model.scores(name, trees, replies)) for name in [*members(model), "held_out"]} if trees else {}
    if not trees:
        return {"calibration": {}, "gate": {"passed": False, "checks": [], "why": "no held-out judgement to measure the reward model by"}, "metrics": {}, "line": "no held-out judgement"}
    spread = {name: {"mean": float(each.mean()), "std": float(each.std()) or 1.0} for name, each in scores.items()}
    calibration = {"members": [spread[name] for name in members(model)], "held_out": spread["held_out"], "spread_penalty": settings.spread_penalty}
    reward = combined(torch.stack([scores[name] for name in members(model)]), calibration).numpy()
    pairs = pairs_of(held_out)
    apart = gaps(reward, held_out, [(pair.better, pair.worse) for pair in pairs])
    if not len(pairs):
        return {"calibration": calibration, "gate": {"passed": False, "checks": [], "why": "no two held-out replies to compare"}, "metrics": {}, "line": "no held-out pair"}
    calibration["temperature"] = temperature(apart)
    checks = [accuracy_check(apart, settings.gate.accuracy), calibration_check(apart, settings.gate.ece), length_check(apart, pairs, settings.gate.length_correlation),
              state_check(model.tokenizer, apart, pairs, pairs_of(train), settings.gate.state_over_words),
              spoiled_check(reward, held_out, settings.gate.spoiled), invariance_check(model, held_out[:PROBED])]
    metrics = {"accuracy_by_gap": by_gap(apart, pairs), "accuracy_by_rater": by_rater(apart, pairs), "across_tickets": pairs[0].better[0] != pairs[0].worse[0],
               **{check["name"]: {key: check[key] for key in ("value", "low", "high", "n")} for check in checks}}
    failed = [check for check in checks if check["passed"] is False]
    why = "; ".join(f"{check['name']} is {check['value']:.3f}, needed {check['needed']}" for check in failed)
    line = f"{checks[0]['value']:.3f} [{checks[0]['low']:.3f}, {checks[0]['high']:.3f}] of {len(pairs)} held-out pairs right, calibration error {checks[1]['value']:.3f}; gate {'failed: ' + why if failed else 'passed'}"
    return {"calibration": calibration, "gate": {"passed": not failed, "checks": checks, "why": why}, "metrics": metrics, "line": line}


def check(name: str, value: float, low: float | None, high: float | None, n: int, needed: str, passed: bool | None) -> dict:
    return {"name": name, "value": float(value), "low": low, "high": high, "n": n, "needed": needed, "passed": None if passed is None else bool(passed)}


def right(apart: np.ndarray) -> np.ndarray:
    """1 where the better reply has the higher reward, half for a tie."""
    return (apart > 0) + (apart == 0) / 2


def share_right(hits: np.ndarray) -> dict:
    """The share of the pairs that are right (`right`), with a 95 % interval and their number."""
    return share(float(hits.sum()), len(hits))


def accuracy_check(apart: np.ndarray, least: float) -> dict:
    found = share_right(right(apart))
    return check("accuracy", **found, needed=f"at least {least} at the lower end of its interval", passed=found["low"] >= least)


def temperature(apart: np.ndarray) -> float:
    """The T that makes sigmoid(apart / T) likeliest as the chance that the better reply is better (Guo et al. 2017, arXiv:1706.04599)."""
    grid = np.geomspace(0.02, 50, 400)
    return float(grid[np.argmin([np.logaddexp(0, -apart / t).mean() for t in grid])])


def chances(apart: np.ndarray) -> np.ndarray:
    """P(better one is better) of each pair, with the temperature of the other half of the pairs."""
    halves = np.arange(len(apart)) % 2
    return np.where(halves == 0, *(1 / (1 + np.exp(-apart / temperature(apart[halves == other]))) for other in (1, 0)))


def bins_of(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By bin of confidence in the surer answer, each (BINS,): how many pairs, their confidences' sum, how many of the answers are right."""
    confidence, correct = np.maximum(p, 1 - p), (p > 0.5) + (p == 0.5) / 2
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return np.bincount(bins, minlength=BINS), np.bincount(bins, confidence, BINS), np.bincount(bins, correct, BINS)


def calibration_error(p: np.ndarray) -> float:
    """Expected calibration error of the surer answer: over bins of confidence, |share right - mean confidence| by the bin's share of pairs."""
    _, confidence, correct = bins_of(p)
    return float(np.abs(correct - confidence).sum() / len(p))


def calibration_check(apart: np.ndarray, most: float) -> dict:
    p, rng = chances(apart), np.random.default_rng(0)
    value = calibration_error(p)
    drawn = sorted(calibration_error(p[rng.integers(0, len(p), len(p))]) for _ in range(DRAWS))
    needed = f"at most {most}" + ("" if len(p) >= FEWEST else f", not judged: {len(p)} pairs, of {FEWEST} needed")
    drawing = [{"confidence": c / n, "right": r / n, "n": int(n)} for n, c, r in zip(*bins_of(p), strict=True) if n]
    return check("calibration_error", value, drawn[int(0.025 * DRAWS)], drawn[int(0.975 * DRAWS)], len(p), needed, value <= most if len(p) >= FEWEST else None) | {"bins": drawing}


def length_check(apart: np.ndarray, pairs: list[Pair], most: float) -> dict:
    """Correlation of reward and length within pairs, less that of the raters' own gap and length: what raters want is no bias of the model."""
    longer = np.array([len(p.said[0]) - len(p.said[1]) for p in pairs], dtype=float)
    gaps = np.array([p.gap for p in pairs])

    def correlation(values: np.ndarray, lengths: np.ndarray) -> float:
        norm = np.sqrt((values ** 2).sum() * (lengths ** 2).sum())       # both orders of each pair: the means are 0
        return float((values * lengths).sum() / norm) if norm else 0.0

    def more(chosen: np.ndarray) -> float:
        return correlation(apart[chosen], longer[chosen]) - correlation(gaps[chosen], longer[chosen])

    rng = np.random.default_rng(0)
    drawn = sorted(more(rng.integers(0, len(pairs), len(pairs))) for _ in range(DRAWS))
    value = more(np.arange(len(pairs)))
    return check("length_correlation", value, drawn[int(0.025 * DRAWS)], drawn[int(0.975 * DRAWS)], len(pairs), f"at most {most} either way", abs(value) <= most)


def spoiled_check(reward: np.ndarray, judged: list[Judged], least: float) -> dict:
    """How often a good reply has a higher reward than itself spoiled: one of another turn or conversation in its place, a deed that nobody asked for, a number put wrong, cut short, spliced."""
    ways = np.array([way for one in judged for _, _, way in one.spoiled])
    apart = gaps(reward, judged, [((i, better), (i, worse)) for i, one in enumerate(judged) for better, worse, _ in one.spoiled])
    if not len(apart):
        return check("spoiled", 0.0, None, None, 0, f"at least {least}, not judged: no good reply", None)
    found = share_right(right(apart))
    return check("spoiled", **found, needed=f"at least {least} at the lower end of its interval", passed=found["low"] >= least) | {
        "by_way": {str(way): share_right(right(apart[ways == way])) for way in sorted(set(ways))}}


def contested(kinds: list[tuple[str, str]]) -> list[bool]:
    """Of pairs as (kind of the better reply, kind of the worse one): whether these two kinds are better now one, now the other, so that only the state tells."""
    orders = Counter(kinds)
    return [better != worse and min(orders[better, worse], orders[worse, better]) >= 0.2 * (orders[better, worse] + orders[worse, better]) for better, worse in kinds]


def often(tokenizer, judged: list[Judged], share: float) -> list[Judged]:
    """The conversations, with those repeated that hold a contested pair, until they are about `share` of all; any that no pair is contested in comes once.

    Where the same two replies are better now one, now the other, only the state of the world tells; seen as rarely as they come, such pairs are
    learned last, and a reward model that is right nine times in ten is then wrong in just these. Single ratings come once at most: they are mostly good, and repeated
    they say of whatever is contested that it is good to say.
    """
    pairs = [(i, (kind(tokenizer, one.reply(better)), kind(tokenizer, one.reply(worse)))) for i, one in enumerate(judged) for better, worse, _ in one.pairs]
    hold = {i for (i, _), either_way in zip(pairs, contested([kinds for _, kinds in pairs]), strict=True) if either_way}
    times = max(1, round(share / (1 - share) * (len(judged) - len(hold)) / max(1, len(hold))))
    again = {i: replace(judged[i], ratings=[]) for i in hold}
    return [one for i, each in enumerate(judged) for one in [each, *([again[i]] * (times - 1) if i in hold else [])]]


def same_words(tokenizer, pairs: list[Pair]) -> list[int]:
    """Pairs where only the state of the world tells which is better: the words are the same but for numbers, or the same two
    kinds of reply (a tool and another, a tool and a text) are better now one, now the other."""
    kinds = [tuple(kind(tokenizer, said) for said in p.said) for p in pairs]
    texts = [[wording(tokenizer, said) for said in p.said] for p in pairs]
    return [i for i, either_way in enumerate(contested(kinds)) if either_way or texts[i][0] == texts[i][1]]


def words(replies: list[list[int]]) -> torch.Tensor:
    """Counts of tokens (N, WORDS), hashed."""
    counts = torch.zeros(len(replies), WORDS)
    for row, reply in enumerate(replies):
        counts[row].index_add_(0, torch.tensor([token % WORDS for token in reply]), torch.ones(len(reply)))
    return counts


def bag_of_words(train: list[Pair], held_out: list[Pair], most: int = 6000) -> np.ndarray:
    """By how much a logistic regression on the replies' words prefers each held-out pair's better one: what can be known without reading the conversation."""
    train = train[:most]
    x = words([p.said[0] for p in train]) - words([p.said[1] for p in train])
    weight = torch.zeros(WORDS, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.softplus(-x @ weight).mean() + 1e-3 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return ((words([p.said[0] for p in held_out]) - words([p.said[1] for p in held_out])) @ weight).numpy()


def state_check(tokenizer, apart: np.ndarray, pairs: list[Pair], train: list[Pair], least: float) -> dict:
    """On the slice of `same_words` the reward model must know more than a bag of words does: paired difference of accuracies."""
    chosen = same_words(tokenizer, pairs)
    if not chosen or not train:
        return check("state_over_words", 0.0, None, None, len(chosen), f"above {least} with its interval, not judged: no pair of the kind", None)
    beaten = right(bag_of_words(train, [pairs[i] for i in chosen]))
    value, low, high = paired_difference(right(apart[chosen]).tolist(), beaten.tolist(), DRAWS)
    return check("state_over_words", value, low, high, len(chosen), f"above {least} with its interval", low > least) | {"model": float(right(apart[chosen]).mean()), "words": float(beaten.mean())}


def invariance_check(model: OneBase, judged: list[Judged]) -> dict:
    """By how much a reward changes, in standard deviations at most: alone instead of in a batch, in another order, and as a row instead of in a tree."""
    name, trees, replies = members(model)[0], [one.tree for one in judged], [one.replies() for one in judged]
    together = torch.cat(model.scores(name, trees, replies))
    alone = torch.cat([model.scores(name, [tree], [mine])[0] for tree, mine in zip(trees, replies, strict=True)])
    turned = torch.cat(model.scores(name, trees[::-1], replies[::-1])[::-1])
    rows = [(grow([[one.tree.ids[place] for place in path]]), length) for one in judged for path, length in zip(one.tree.leaves, one.lengths, strict=True)]
    single = torch.cat(model.scores(name, [row for row, _ in rows], [[row.leaves[0][-length:]] for row, length in rows]))
    worst = max(float((together - other).abs().max()) for other in (alone, turned, single)) / (float(together.std()) or 1.0)
    most = tolerance(model)
    return check("invariance", worst, None, None, len(together), f"at most {most} standard deviations", worst <= most)


def tolerance(model: OneBase) -> float:
    """How far two scores of one reply may lie apart that are read in other batches: as far as its base rounds."""
    return 1e-3 if next(model.base.parameters()).dtype == torch.float32 else 5e-2


def by_gap(apart: np.ndarray, pairs: list[Pair]) -> dict[str, dict]:
    """Accuracy by how many stars lie between the two."""
    found = {}
    for low, high in ((0, 1), (1, 2), (2, 3), (3, 9)):
        mine = right(apart[[low <= p.gap < high for p in pairs]])
        if len(mine):
            found[f"{low}-{high}" if high < 9 else f"{low}+"] = share_right(mine)
    return found


def by_rater(apart: np.ndarray, pairs: list[Pair]) -> dict[str, dict]:
    """Accuracy on the pairs in which a rater (a pseudonym) had a part."""
    mine = defaultdict(list)
    for hit, pair in zip(right(apart), pairs, strict=True):
        for rater in {*pair.raters[0], *pair.raters[1]}:
            mine[rater].append(hit)
    return {rater: share_right(np.array(hits)) for rater, hits in sorted(mine.items())}
