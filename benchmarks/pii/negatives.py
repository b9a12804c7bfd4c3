"""T4: numbers and codes that look like personal data and must stay."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from stdnum import ean

from benchmarks.pii.text import case, choose, fill, load, mark, messy

ALPHABETS = {"#": "0123456789", "@": "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "%": "0123456789abcdef", "^": "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"}


def written(spec: dict, rng: random.Random) -> str:
    """One value of a kind: its shape filled in, with a check digit where real ones have it. No shape starts a number with a zero."""
    text = rng.choice(spec["shapes"])
    if spec.get("literal"):
        return text
    text = choose(text, rng)
    text = re.sub(r"(^|[ €$£-])#", lambda m: m[1] + rng.choice("123456789"), text, count=1)
    text = "".join(rng.choice(ALPHABETS[c]) if c in ALPHABETS else c for c in text)
    return text + ean.calc_check_digit(text) if spec.get("check") == "ean" else text


def hard_negatives(n: int = 1000, seed: int = 0) -> Iterator[dict]:
    """T4: n cases over all kinds and eight languages; the whole text must stay, `keep` marks the tempting part."""
    words, rng = load("negatives"), random.Random(f"{seed}-hard_negatives")
    kinds = list(words["kinds"])
    for i in range(n):
        kind = kinds[i % len(kinds)]
        spec = words["kinds"][kind]
        carriers = words["carriers"][spec["carrier"]]
        language = rng.choice(list(carriers))
        carrier = rng.choice(carriers[language])
        role, carrier = ("assistant", carrier[3:]) if carrier.startswith("A: ") else ("user", carrier)
        label = words["labels"][language].get(spec.get("label"), "") if language in words["labels"] else ""
        text = messy(fill(carrier, rng, {"x": mark("keep", written(spec, rng)), "label": label}), rng)
        yield case("hard_negatives", kind, language, language, [(role, text)])
