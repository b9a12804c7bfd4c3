"""Predicted CSAT: how likely a customer would give a thumb up, learned from the customers' own thumbs in the archive.

It is a prediction of an opinion, and opinions punish a correct "no": it is shown beside success, never in its place. Half of the customers who judged are kept
apart; on theirs the calibration is measured.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from data_prep.conversation import Message
from data_prep.statistics import bootstrap
from eval.metrics import NOT_MEASURED, calibration_error

HASHED = 512
RIDGE = 2.0
LEAST = 200           # judged conversations below which nothing is predicted


def features(messages: list[Message]) -> np.ndarray:
    """Of a conversation: replies, customer's messages, handed off, tool errors, something said twice, and the words of the last reply, hashed."""
    said = [m["content"] for m in messages if m["role"] == "assistant" and m["content"]]
    tools = [call["function"]["name"] for m in messages for call in m.get("tool_calls") or []]
    vector = np.zeros(7 + 2 * HASHED)
    vector[:7] = (1.0, np.log1p(len(said)), np.log1p(sum(m["role"] == "user" for m in messages)), "transfer_to_human" in tools, any('"error"' in m["content"] for m in messages if m["role"] == "tool"),
                  len(set(said)) < len(said), not said)
    for word in set(re.findall(r"\w+", re.sub(r"\d+", "0", said[-1].lower()))) if said else ():
        vector[7 + zlib.crc32(word.encode()) % HASHED] = 1.0
    for tool in set(tools):
        vector[7 + HASHED + zlib.crc32(tool.encode()) % HASHED] = 1.0
    return vector


@dataclass(frozen=True)
class Csat:
    """`weights` of the features; `ece` and `n`: expected calibration error on customers kept apart."""

    weights: np.ndarray
    ece: float
    n: int

    def of(self, conversations: Iterable[list[Message]]) -> dict:
        """The mean predicted CSAT of conversations, with its bootstrap interval."""
        predicted = [_p(self.weights, features(messages)) for messages in conversations]
        if not predicted:
            return dict(NOT_MEASURED)
        low, high = bootstrap(predicted, draws=500)
        return {"value": float(np.mean(predicted)), "low": low, "high": high, "n": len(predicted), "gate": None}


def _p(weights: np.ndarray, vector: np.ndarray) -> float:
    return float(1 / (1 + np.exp(-(vector @ weights))))


def learn(conversations: Iterable[dict], feedback: Iterable[dict]) -> Csat | None:
    """From an anonymised archive: its conversations and the customers' thumbs on whole conversations. None where too few were judged."""
    thumbs = {f["conversation_id"]: f["thumb"] == "up" for f in feedback if f["kind"] == "thumb" and f.get("message_index") is None}
    rows = [(features(c["messages"]), thumbs[c["id"]], _kept_apart(str((c.get("customer") or {}).get("id", c["id"])))) for c in conversations if c["id"] in thumbs]
    if len(rows) < LEAST or len({up for _, up, _ in rows}) < 2:
        return None
    x, y = np.array([v for v, _, apart in rows if not apart]), np.array([up for _, up, apart in rows if not apart], float)

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ b
        return float((np.logaddexp(0, z) - y * z).sum() + RIDGE / 2 * b @ b), x.T @ (1 / (1 + np.exp(-z)) - y) + RIDGE * b

    weights = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
    held = [(_p(weights, v), bool(up)) for v, up, apart in rows if apart]
    return Csat(weights, calibration_error(held), len(held))


def _kept_apart(customer: str) -> bool:
    return hashlib.sha256(customer.encode()).digest()[0] % 2 == 0
