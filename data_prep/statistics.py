"""Intervals: a figure never stands alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927). With n = 0 nothing is known: (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding must not leave the share itself outside.
    return min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half))


def paired_difference(a: Sequence[float], b: Sequence[float], draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a - b over the same items, with its 95 % bootstrap interval (Efron 1979): (value, low, high)."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    if not differences:
        return 0.0, 0.0, 0.0
    rng, n = random.Random(seed), len(differences)
    means = sorted(sum(rng.choices(differences, k=n)) / n for _ in range(draws))
    return sum(differences) / n, means[int(0.025 * draws)], means[int(0.975 * draws)]


def cohen_kappa(a: Sequence[str], b: Sequence[str]) -> float | None:
    """Agreement of two people over the same items beyond chance: (observed - expected) / (1 - expected) (Cohen 1960).

    None where chance alone explains everything: both gave one and the same answer throughout.
    """
    n = len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / max(1, n)
    expected = sum((list(a).count(answer) / n) * (list(b).count(answer) / n) for answer in {*a, *b})
    return (observed - expected) / (1 - expected) if n and expected < 1 else None
