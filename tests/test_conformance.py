"""What a real vLLM 0.32 answered, asked again of this endpoint: the same status, keys and types, and of greedy replies the same words.

    make test-vllm            the same tests against a running vLLM (VLLM_URL), and both asked side by side
"""

from __future__ import annotations

import json
import os

import pytest

from tests.exchanges import EXCHANGES, KEY, RECORDED, ask, shapes, text_of
from tests.serving import served

RECORDINGS = json.loads(RECORDED.read_text(encoding="utf-8"))
# Where this endpoint answers otherwise on purpose.
OTHERWISE = {
    "models without a key": "the error is an object, which OpenAI's clients can read; vLLM sends a string", "models with a wrong key": "as without a key",
    "unknown role": "a role that the template does not know is refused: it would open a turn of its own"}
# Where the words may differ.
WORDS = {
    "tool call named": "vLLM's hermes parser gives a string for arguments; ours follow the tool's schema", "tool call required": "as the named one",
    "completion two choices": "drawn at temperature 1", "chat two choices": "drawn", "chat stream two choices": "drawn", "chat seed": "drawn", "chat top_k, min_p": "drawn",
    "json schema": "blanks between tokens are the grammar library's", "structured json": "as json schema"}
# What the model has not learned by heart: another machine's training may end in other words. Side by side they are compared all the same.
UNSURE = {"chat min_tokens", "chat ignore_eos", "chat penalties", "chat logit_bias", "structured regex"}


def is_sure(name: str) -> bool:
    return name.startswith(("chat", "tool")) and name not in UNSURE and name not in WORDS


@pytest.fixture(scope="module")
def url(parrot, tmp_path_factory):
    """Ours, or the vLLM that VLLM_URL names."""
    if given := os.environ.get("VLLM_URL"):
        yield given
        return
    with served(parrot, tmp_path_factory.mktemp("conformance"), key=KEY, served_model_name="support", guard="false") as ours:
        yield ours


@pytest.mark.slow
@pytest.mark.parametrize("name", EXCHANGES)
def test_an_exchange_is_as_vllms(url, name):
    answer, recorded = ask(url, EXCHANGES[name]), RECORDINGS[name]
    if name in OTHERWISE and not os.environ.get("VLLM_URL"):
        assert answer["status"] == (401 if "key" in name else 400)
        return
    assert (answer["status"], answer["type"]) == (recorded["status"], recorded["type"]), answer
    assert shapes(answer) == shapes(recorded)
    if is_sure(name):
        assert text_of(answer) == text_of(recorded)
    if isinstance(recorded.get("json"), dict) and "usage" in recorded["json"] and is_sure(name):
        assert answer["json"]["usage"] == recorded["json"]["usage"]
    if isinstance(recorded.get("json"), dict) and isinstance(recorded["json"].get("error"), dict):
        assert {key: answer["json"]["error"][key] for key in ("type", "param", "code")} == {key: recorded["json"]["error"][key] for key in ("type", "param", "code")}


@pytest.mark.slow
@pytest.mark.skipif("VLLM_URL" not in os.environ, reason="make test-vllm starts a vLLM to compare with")
@pytest.mark.parametrize("engine", ["auto", "that vLLM"])
def test_both_say_the_same_side_by_side(parrot, tmp_path, monkeypatch, engine):
    """With our own engine, and standing in front of that vLLM, as before GPUs."""
    monkeypatch.setenv("SUPPORTLOOP_UPSTREAM_KEY", KEY)
    with served(parrot, tmp_path, key=KEY, served_model_name="support", guard="false", engine=engine if engine == "auto" else f"{os.environ['VLLM_URL']}/v1") as ours:
        for name, exchange in EXCHANGES.items():
            if name not in OTHERWISE and name not in WORDS:
                assert text_of(ask(ours, exchange)) == text_of(ask(os.environ["VLLM_URL"], exchange)), name
