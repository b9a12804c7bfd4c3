"""Intervals: a figure never stands alone."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Hashable, Sequence


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927). With n = 0 nothing is known: (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding must not leave the share itself outside.
    return min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half))


def share(hits: float, n: int) -> dict:
    """So many of n (a tie is half a hit), with its 95 % interval: {"value", "low", "high", "n"}; a value of None where n is 0."""
    low, high = wilson(int(hits), n)
    return {"value": hits / n if n else None, "low": low, "high": high, "n": n}


def bootstrap(values: Sequence[float], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean by drawing the values anew (Efron 1979)."""
    rng, n = random.Random(seed), len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


def drawn_groups(groups: Sequence[Hashable], draws: int = 1000, seed: int = 0) -> list[list[int]]:
    """Places of the items of as many groups as there are, drawn anew, so many times: a cluster bootstrap, for items of one group are no independent ones.

    `groups` is the group of each item.
    """
    members, rng = defaultdict(list), random.Random(seed)
    for place, group in enumerate(groups):
        members[group].append(place)
    every = list(members.values())
    return [[place for some in rng.choices(every, k=len(every)) for place in some] for _ in range(draws)]


def paired_difference(a: Sequence[float], b: Sequence[float], draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a - b over the same items, with its 95 % bootstrap interval: (value, low, high)."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    if not differences:
        return 0.0, 0.0, 0.0
    return sum(differences) / len(differences), *bootstrap(differences, draws, seed)


def cohen_kappa(a: Sequence[str], b: Sequence[str]) -> float | None:
    """Agreement of two people over the same items beyond chance: (observed - expected) / (1 - expected) (Cohen 1960).

    None where chance alone explains everything: both gave one and the same answer throughout.
    """
    n = len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / max(1, n)
    expected = sum((list(a).count(answer) / n) * (list(b).count(answer) / n) for answer in {*a, *b})
    return (observed - expected) / (1 - expected) if n and expected < 1 else None
