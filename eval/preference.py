"""Would the assistant's reply be preferred to the agent's, in the same place? By the held-out reward model, and by an LLM judge where one is configured.

A reward model scores each reply by itself, so that no order can matter; a judge is asked in both orders, and where it changes its mind it is a tie. Longer replies
are liked for being long (Dubois et al. 2024, arXiv:2404.04475), so the share is also given for replies of equal length.
"""

from __future__ import annotations

import json
import os
import re

import numpy as np
import openai
import torch
from scipy.optimize import minimize

from data_prep.artifacts import StageError, stage_dir
from data_prep.conversation import Message
from data_prep.statistics import bootstrap
from eval.metrics import NOT_MEASURED
from eval.replies import normal
from training.ensemble import held_out_rewards, leaf, load_rewards
from training.trees import grow

TIE = 0.1             # standard deviations of reward within which two replies are as good
JUDGED = 100          # places a judge is asked about, twice each
QUESTION = """A customer of an online shop wrote to support. Below are the conversation and two replies, A and B. Which reply serves the customer better, within what the system message
and the tools' answers allow? Inventing facts, promising what was not done and keeping a customer from a person are worse than being short. Answer with one word: A, B or TIE."""


def rewarded(config, tokenizer, rows: list[dict], written: list[Message]) -> list[tuple[float, int]]:
    """(1 where the assistant's reply is rewarded higher, 0.5 where as high, 0 where lower; how many tokens it is longer) of each row, by the model that no policy was trained against.
    [] where there is no reward model that passed its gate."""
    folder = stage_dir(config, "reward")
    if not (folder / "gate.json").is_file() or not json.loads((folder / "gate.json").read_text())["passed"]:
        return []
    model, calibration = load_rewards(config, tokenizer, folder), json.loads((folder / "calibration.json").read_text())
    pairs = [(leaf(tokenizer, row["prompt"], mine, config.model.max_tokens), leaf(tokenizer, row["prompt"], row["completion"][0], config.model.max_tokens)) for row, mine in zip(rows, written, strict=True)]
    kept = [(mine, theirs, normal(reply) == normal(row["completion"][0])) for (mine, theirs), reply, row in zip(pairs, written, rows, strict=True) if mine and theirs]
    leaves = [one for mine, theirs, _ in kept for one in (mine, theirs)]
    if not leaves:
        return []
    trees = [grow([ids]) for ids, _ in leaves]
    with torch.no_grad():
        scores = held_out_rewards(model, calibration, trees, [[tree.leaves[0][-length:]] for tree, (_, length) in zip(trees, leaves, strict=True)]).reshape(-1, 2).tolist()
    return [(0.5 if same or abs(a - b) <= TIE else float(a > b), mine[1] - theirs[1]) for (a, b), (mine, theirs, same) in zip(scores, kept, strict=True)]


def judged(url: str, model: str, rows: list[dict], written: list[Message]) -> list[tuple[float, int]]:
    """The same by an LLM behind an OpenAI-compatible endpoint, in both orders. Raises: StageError where it does not answer."""
    client = openai.OpenAI(base_url=url, api_key=os.environ.get("SUPPORTLOOP_JUDGE_KEY", "none"), max_retries=3, timeout=120)
    return [(verdict(*(_ask(client, model, row["prompt"], *order) for order in ((mine, row["completion"][0]), (row["completion"][0], mine)))), len(mine["content"]) - len(row["completion"][0]["content"]))
            for row, mine in list(zip(rows, written, strict=True))[:JUDGED]]


def verdict(first: str, second: str) -> float:
    """Of two answers, the assistant's reply being A in the first and B in the second: 1, 0, or 0.5 where they say a tie or not the same."""
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((first, second), 0.5)


def _ask(client: openai.OpenAI, model: str, prompt: list[Message], a: Message, b: Message) -> str:
    talk = "\n".join(f"{m['role']}: {normal(m) if m['role'] == 'assistant' else m['content']}" for m in prompt)
    try:
        made = client.chat.completions.create(model=model, temperature=0, max_tokens=8, messages=[{"role": "system", "content": QUESTION}, {"role": "user", "content": f"{talk}\n\nA: {normal(a)}\n\nB: {normal(b)}"}])
    except openai.APIError as error:
        raise StageError(f"evaluate.judge={client.base_url} did not answer ({type(error).__name__}): is it running, is evaluate.judge_model={model} its model, and does SUPPORTLOOP_JUDGE_KEY hold its key?") from None
    found = re.search(r"\b(A|B|TIE)\b", (made.choices[0].message.content or "").upper())
    return found.group(1) if found else "TIE"


def preferred(wins: list[tuple[float, int]]) -> dict:
    """Share of places where the assistant's reply is preferred, a tie being half a win, with its bootstrap interval; `at_equal_length` is the same by a logistic regression on the difference in length."""
    if not wins:
        return dict(NOT_MEASURED)
    values, longer = np.array([w for w, _ in wins]), np.array([d for _, d in wins], float)
    low, high = bootstrap(values.tolist())
    scale = longer.std() or 1.0

    def loss(b: np.ndarray) -> float:
        z = b[0] + b[1] * longer / scale
        return float((np.logaddexp(0, z) - values * z).sum() + 0.5 * b[1] ** 2)

    return {"value": float(values.mean()), "low": low, "high": high, "n": len(wins), "gate": None, "ties": float((values == 0.5).mean()), "at_equal_length": float(1 / (1 + np.exp(-minimize(loss, np.zeros(2)).x[0])))}
