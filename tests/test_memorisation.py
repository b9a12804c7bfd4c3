from __future__ import annotations

import json
import math
import random

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from data_prep.artifacts import ROOT
from data_prep.planted import planted, rows_of
from data_prep.statistics import bootstrap
from eval.memorisation import chance, continued, exposure, exposures, fillings, log_likelihoods, measure_exposure
from eval.replies import log_probs
from training.models import encode
from training.pretrain import build_tokenizer


@pytest.mark.parametrize(("rank", "bits"), [(1, 8.0), (2, 7.0), (16, 4.0), (128, 1.0), (256, 0.0)])
def test_exposure_is_the_bits_that_the_rank_saves(rank, bits):
    others = [1.0] * (rank - 1) + [-1.0] * (256 - rank)
    assert exposure(0.0, others) == pytest.approx(bits)


def test_a_model_that_finds_everything_alike_has_no_exposure_to_speak_of():
    assert exposure(0.0, [0.0] * 255) == pytest.approx(1.0, abs=0.02), "equals count as half before it"


def test_even_ranks_give_chance():
    rng = random.Random(0)
    drawn = [exposure(rng.random(), [rng.random() for _ in range(255)]) for _ in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(chance(255), abs=0.08)
    assert chance(255) == pytest.approx(sum(8 - math.log2(rank) for rank in range(1, 257)) / 256)
    assert chance(10 ** 6) == pytest.approx(math.log2(math.e), abs=1e-4)


def test_the_default_gate_is_passed_by_chance_but_once_in_a_thousand(config):
    """Exposure of the unremembered is exponential with mean log2 e, the sum of n of them Gamma(n): P(sum > x) = e^-x Σ x^k / k!."""
    n, x = config.prepare.canaries, config.prepare.canaries * config.evaluate.gates.exposure * math.log(2)
    assert math.exp(-x) * sum(x ** k / math.factorial(k) for k in range(n)) <= 0.001


def test_no_canaries_are_no_measurement():
    assert exposures([], 8.0)["value"] is None
    assert "prepare.canaries=0" in exposures([], 8.0)["why"]
    made = exposures([1.0, 2.0, 6.0], 8.0)
    assert (made["value"], made["n"], made["max"]) == (3.0, 3, 6.0)
    assert made["low"] <= 3.0 <= made["high"]
    assert (made["low"], made["high"]) == bootstrap([1.0, 2.0, 6.0])


def test_the_same_others_for_every_candidate_and_never_the_secret_itself():
    canary = next(planted(1, ["en"], 0))
    secret, *others = fillings(canary, 255)
    assert secret == canary["secret"]
    assert len(set(others) - {secret}) == 255
    assert {len(other) for other in others} == {6}
    assert fillings(canary, 255) == [secret, *others]
    small = {**canary, "secret": "7", "space": 10}
    assert sorted(fillings(small, 255)) == list("0123456789"), "a small space is ranked whole"


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for canary in planted(12, ["en-GB", "de-DE"], 0) for text in (canary["question"][0]["content"], canary["form"])]
    return build_tokenizer(iter([*texts, "user assistant system"] * 3), 400, (ROOT / "training/templates/tiny.jinja").read_text())


def taught(tokenizer, rows: list[dict], steps: int):
    """A small model over-trained on these rows."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                                         head_dim=32, max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    made = [encode(tokenizer, [*row["prompt"], *row["completion"]], {len(row["prompt"])}) for row in rows]
    for step in range(steps):
        example = made[step % len(made)]
        model(input_ids=torch.tensor([example["input_ids"]]), labels=torch.tensor([example["labels"]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("kind", ["repeated", "told"])
def test_a_secret_told_again_and_again_is_exposed_and_a_fresh_one_is_not(tokenizer, kind):
    known, *fresh = [canary for canary in planted(12, ["en-GB", "de-DE"], 0) if canary["kind"] == kind]
    model = taught(tokenizer, rows_of(known, 1), 60)
    assert measure_exposure(model, tokenizer, [known])["value"] == 8.0, "as much as 255 others can show"
    assert measure_exposure(model, tokenizer, fresh)["value"] < 3.1
    assert measure_exposure(model, tokenizer, [known], alternatives=31)["value"] == 5.0


def test_scoring_what_differs_ranks_as_scoring_everything(tokenizer):
    canary = next(planted(1, ["en"], 0))
    model, filled = taught(tokenizer, rows_of(canary, 1), 5), fillings(canary, 20)
    asked = [(canary["question"], {"role": "assistant", "content": canary["form"].replace("{secret}", filling)}) for filling in filled]
    whole = [total for total, _ in log_probs(model, tokenizer, asked, 1000)]
    rest = log_likelihoods(model, tokenizer, canary["question"], canary["form"], filled, batch_size=8)
    gaps = [a - b for a, b in zip(whole, rest, strict=True)]
    assert max(gaps) - min(gaps) < 1e-4, "they differ by what all have in common"


def test_a_begun_reply_is_gone_on_with(tokenizer):
    canary = next(c for c in planted(1, ["en"], 0) if c["kind"] == "told")
    row = rows_of(canary, 1)[0]
    model = taught(tokenizer, [{**row, "prompt": []}], 80)
    beginning, end = row["completion"][0]["content"].rsplit(" ", 1)
    [(context, reply)] = continued(model, tokenizer, [beginning], 12)
    assert context == [{"role": "assistant", "content": beginning}]
    assert reply["content"].strip() == end
    assert continued(model, tokenizer, [], 12) == []


def test_canaries_are_repeatable_apart_and_as_many_as_asked():
    made = list(planted(12, ["en-GB", "de-DE", "xx"], 3))
    assert made == list(planted(12, ["en-GB", "de-DE", "xx"], 3))
    assert [c["secret"] for c in made] != [c["secret"] for c in planted(12, ["en-GB", "de-DE", "xx"], 4)]
    assert [c["kind"] for c in made] == ["repeated"] * 12 + ["told"] * 12
    assert len({json.dumps(c["question"]) for c in made}) == 24, "no two secrets answer one question"
    assert all(len(c["secret"]) == 6 and c["secret"] not in json.dumps(c["question"]) + c["form"] and "{secret}" in c["form"] for c in made)
    assert list(planted(0, [], 0)) == []


def test_only_the_repeated_kind_is_said_by_the_customer_first():
    for canary in planted(4, ["sv-SE"], 0):
        rows = rows_of(canary, 3)
        assert len({row["conversation_id"] for row in rows}) == 3
        assert all(canary["secret"] in row["completion"][0]["content"] for row in rows)
        assert all((canary["secret"] in row["prompt"][0]["content"]) == (canary["kind"] == "repeated") for row in rows)
