"""Fit what the guard's cues and words weigh, `serve/languages/weights.npz`: run it after a change of the lists or examples there.

    python -m eval.calibrate

A multinomial logistic regression over `serve.cues.features`. It learns from the examples beside the lists, from `serve/languages/examples/`, patterns of
which several messages are drawn, and from the openings of the sample company's customers. How sure it may be (a temperature and a constant a class) is fitted on the `dev` half of `eval/suites/handoff`, which
was written apart from all of these. The `test` half is what evaluation measures on, and is not read here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse as sparse
import yaml
from scipy.optimize import minimize

from conf.load import load_config
from data_prep.artifacts import hash_value
from data_prep.company.pack import load_pack, say
from eval.handoff import EXPLICIT, messages_of
from serve.cues import CLASSES, FOLDER, SIZE, TOPICS, features, languages

SMALL = 0.02          # weights below it are dropped: most are of pieces that tell nothing
DRAWS = 6             # messages of a pattern
RIDGE = 0.03          # pull of every weight towards 0
PRODUCTS = ("laptop", "sofa", "iPhone", "camera", "jeans")      # what <product> is in a pattern
VALUES = ("48213", "70955", "19384", "Lindenstraat 7", "Nordby 21", "Moore", "e.moore@example.com", "070 555 01 23")      # what everything else in angle brackets is
BESIDE = 1.0          # weight of a message with another beside it
ENTRY = 0.5           # weight of an entry of a list, which is no whole message, beside an example


def class_of(kind: str) -> str:
    return "human" if kind in (*EXPLICIT, "request") else kind if kind in ("ai", *TOPICS) else "none"


def examples() -> list[tuple[str, str, str, float]]:
    """(language, class, message, weight) of everything that is learned from."""
    found = []
    for code in languages():
        lists = yaml.safe_load((FOLDER / f"{code}.yaml").read_text(encoding="utf-8"))
        found += [(code, class_of(kind), text, 1.0) for kind, texts in lists["examples"].items() for text in texts]
        found += [(code, topic, entry.replace("*", ""), ENTRY) for topic in TOPICS for entry in lists["topics"][topic]]
        found += [(code, name, entry.replace("*", ""), ENTRY) for name, list_ in (("human", "request"), ("ai", "ai_question")) for entry in lists[list_]]
        patterns = patterns_of(code)
        beside = [pattern for kind, pattern in patterns if kind == "ordinary"]
        for kind, pattern in patterns:
            rng = random.Random(pattern)
            drawn = sorted({say(_filled(pattern, rng), {}, rng) for _ in range(DRAWS)})
            found += [(code, class_of(kind), text, 1 / len(drawn)) for text in drawn]
            if beside and class_of(kind) == "none":
                found += [(code, class_of(kind), _with(text, say(_filled(rng.choice(beside), rng), {}, rng), rng), BESIDE / len(drawn)) for text in drawn[:2]]
    return found


def _with(text: str, ordinary: str, rng: random.Random) -> str:
    """An ordinary message with another before or behind it: most are more than one sentence, and what is polite or by the way is no reason for anything."""
    first, second = (text, ordinary) if rng.random() < 0.5 else (ordinary, text)
    return f"{first}{'' if first[-1:] in '.!?…' else rng.choice(('.', ',', '', '!'))} {second}"


def _filled(pattern: str, rng: random.Random) -> str:
    return re.sub(r"<([a-z_.]+)>", lambda m: rng.choice(PRODUCTS if m.group(1) == "product" else VALUES), pattern)


def patterns_of(code: str) -> list[tuple[str, str]]:
    """(kind, pattern) of the messages written to be learned from: those in `examples/`, and what customers of the sample company open with."""
    held = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((FOLDER / "examples").glob(f"{code}*.yaml"))]
    pack = load_pack(load_config([]).company)
    if code in pack.phrases:
        customer = dict(pack.phrases[code]["customer"])
        held.append({"bare" if intent == "human" else intent: patterns for intent, patterns in customer.pop("openings").items()})
        held += [{"ordinary": list(_strings(node))} for node in customer.values()]         # what customers say after that: answers, thanks, goodbyes
    return [(kind, pattern) for kinds in held for kind, patterns in kinds.items() for pattern in patterns]


def _strings(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    else:
        for child in node.values() if isinstance(node, dict) else node:
            yield from _strings(child)


def matrix(messages: Iterable[tuple[str, str]]) -> sparse.csr_matrix:
    """(messages, SIZE) of (language, text)."""
    rows = [features(text, languages()[code]) for code, text in messages]
    starts = np.cumsum([0, *(len(places) for places, _ in rows)])
    return sparse.csr_matrix((np.concatenate([v for _, v in rows]), np.concatenate([p for p, _ in rows]), starts), shape=(len(rows), SIZE))


def likelihood(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
    """(weighted negative log-likelihood, its gradient in the logits) of one-hot labels (rows, classes)."""
    logits = logits - logits.max(1, keepdims=True)
    total = np.exp(logits).sum(1, keepdims=True)
    return float((weight * (np.log(total[:, 0]) - (logits * labels).sum(1))).sum()), (np.exp(logits) / total - labels) * weight[:, None]


def fit(x: sparse.csr_matrix, labels: np.ndarray, weight: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """The weights (SIZE, classes), by penalised maximum likelihood."""
    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        held = flat.reshape(SIZE, -1)
        value, gradient = likelihood(x @ held, labels, weight)
        return value + ridge / 2 * float((held ** 2).sum()), (x.T @ gradient + ridge * held).ravel()

    return minimize(loss, np.zeros(SIZE * labels.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x.reshape(SIZE, -1)


def soften(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """(constant a class, temperature) that make the probabilities of other messages right on the whole. The others hold no question whether this is an AI: that class has the constant of `none`."""
    held = np.eye(len(CLASSES))
    held[CLASSES.index("ai")] = held[CLASSES.index("none")]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        bias, scale = held @ flat[:-1], np.exp(flat[-1])
        value, gradient = likelihood((logits + bias) * scale, labels, np.ones(len(labels)))
        return value, np.r_[held.T @ gradient.sum(0) * scale, (gradient * (logits + bias)).sum() * scale]

    found = minimize(loss, np.zeros(labels.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return held @ found[:-1], float(np.exp(-found[-1]))


def one_hot(classes: list[str]) -> np.ndarray:
    return np.eye(len(CLASSES))[[CLASSES.index(name) for name in classes]]


def main() -> None:
    learned, held = examples(), [(code, class_of(kind), text) for code, kind, text in messages_of("dev")]
    made = fit(matrix((code, text) for code, _, text, _ in learned), one_hot([name for _, name, _, _ in learned]), np.array([weight for *_, weight in learned]))
    made = np.where(np.abs(made) < SMALL, 0, made).astype(np.float16)
    bias, temperature = soften(matrix((code, text) for code, _, text in held) @ made.astype(np.float32), one_hot([name for _, name, _ in held]))
    partial = FOLDER / "weights.partial.npz"
    np.savez_compressed(partial, weights=made, bias=bias.astype(np.float32), temperature=np.float32(temperature), learned=hash_value(learned))
    partial.replace(FOLDER / "weights.npz")
    print(f"fitted on {len(learned)} messages in {len(languages())} languages; temperature {temperature:.2f} on {len(held)} others")


if __name__ == "__main__":
    main()
