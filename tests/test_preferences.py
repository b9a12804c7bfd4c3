"""DPO's offset and choice of pairs, KTO's labels, SFT on what was rated well."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from data_prep.artifacts import StageError, stage_dir, stage_output
from data_prep.conversation import tool_call, write_jsonl
from tests.toys import toy_run
from training import dpo, kto
from training.dpo import alarms, either_way, margins, offset_of, telling, tool_of
from training.kto import label_of
from training.models import load_tokenizer, preference_rows, preferences
from training.rollouts import kl_from_sft
from training.sft import is_wanted

GOOD, BAD = "I am glad to help you.", "Pay now."


def rows(count: int) -> list[dict]:
    return [{"conversation_id": f"c-{k // 2}", "prompt": [{"role": "user", "content": f"question {k}"}], "chosen": [{"role": "assistant", "content": GOOD}],
             "rejected": [{"role": "assistant", "content": BAD}], "margin": 1.0 + k % 3} for k in range(count)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = toy_run(tmp_path_factory.mktemp("preferences"), "dpo.trainer.max_steps=4", "dpo.trainer.per_device_train_batch_size=4", "trainer.logging_steps=1", "trainer.warmup_steps=1",
                     "kto.trainer.max_steps=3", "kto.trainer.per_device_train_batch_size=4", "dpo.trainer.learning_rate=1e-2")
    with stage_output(config, "prepare") as out:
        write_jsonl(out / "preferences/train.jsonl", rows(24))
        write_jsonl(out / "preferences/validation.jsonl", rows(4))
        for split in ("train", "validation"):
            write_jsonl(out / f"prompts/{split}.jsonl", rows(6))
        write_jsonl(out / "unpaired/train.jsonl", [{**row, "completion": row[side], "by": "agent", "rating": stars, "offset": 0.0} for row in rows(12) for side, stars in (("chosen", 5), ("rejected", 1))])
    return config


@pytest.mark.slow
def test_what_goes_out_is_half_way_between_sft_and_what_was_trained(run):
    found = {}
    for average in (1.0, 0.5):
        config = run.copy()
        config.dpo.average, config.fingerprint = average, {"average": average}
        dpo.run(config)
        found[average] = load_file(stage_dir(config, "dpo") / "adapter/adapter_model.safetensors")
    sft = load_file(stage_dir(run, "sft") / "adapter/adapter_model.safetensors")
    assert any(not torch.allclose(sft[name], own, atol=1e-4) for name, own in found[1.0].items())
    assert all(torch.allclose(found[0.5][name], (sft[name] + own) / 2, atol=1e-6) for name, own in found[1.0].items())
    config.dpo.average = 1.5
    with pytest.raises(StageError, match=r"dpo.average=1.5 must be above 0"):
        dpo.run(config)


@pytest.mark.slow
def test_a_wide_gap_asks_for_more_and_the_loss_says_so(run):
    """At the first step policy and reference agree, so the loss is the mean of -logsigmoid(-offset) plus the SFT loss: exactly, by hand."""
    losses = {}
    for scale in (0.0, 0.7):
        config = run.copy()
        config.dpo.offset, config.dpo.trainer.loss_type, config.dpo.trainer.loss_weights, config.fingerprint = scale, ["sigmoid"], [1.0], {"seed": int(scale * 10)}
        dpo.run(config)
        losses[scale] = json.loads((stage_dir(config, "dpo") / "curve.json").read_text())
    assert losses[0.0][0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    gaps = {math.log(1 + math.exp(offset_of(gap, 0.7))) for gap in (1.0, 2.0, 3.0)}
    assert min(gaps) <= losses[0.7][0]["loss"] <= max(gaps)
    assert losses[0.7][-1]["loss"] < losses[0.7][0]["loss"]
    assert json.loads((stage_dir(run, "dpo") / "metrics.json").read_text())["kl"] > 0.01, "it has moved away from sft"
    config.dpo.trainer.loss_type = ["sigmoid_norm", "sft"]
    with pytest.raises(StageError, match=r"an offset of the loss sigmoid, not of sigmoid_norm: set dpo.offset=0"):
        dpo.run(config)


def test_sft_is_no_distance_from_itself(run):
    assert kl_from_sft(run, load_tokenizer(run), stage_dir(run, "sft") / "adapter") == pytest.approx(0, abs=1e-5)


@given(st.floats(0, 4), st.floats(0.1, 2))
def test_an_offset_grows_with_the_gap_from_nothing(gap, scale):
    assert offset_of(0.0, scale) == 0.0
    assert offset_of(gap + 0.1, scale) > offset_of(gap, scale)
    assert offset_of(gap, 0.0) == 0.0


@given(st.lists(st.sampled_from([("text", "text"), ("refund", "text"), ("text", "refund"), ("cancel", "text"), ("text", "cancel"), ("refund", "cancel")]), max_size=60), st.integers(0, 40))
def test_of_two_kinds_each_is_as_often_the_better_one(kinds, most):
    def reply(kind: str) -> list[dict]:
        return [{"role": "assistant", "content": kind, "tool_calls": [] if kind == "text" else [tool_call(kind, {})]}]

    pairs = [{"chosen": reply(better), "rejected": reply(worse)} for better, worse in kinds]
    places = either_way(pairs, most, random.Random(0))
    orders = Counter(kinds[place] for place in places)
    assert len(set(places)) == len(places) <= most
    assert all(orders[better, worse] == orders[worse, better] and better != worse for better, worse in orders)


def test_pairs_that_only_the_state_tells_are_among_those_trained_on(run):
    tokenizer = load_tokenizer(run)
    made, _ = preference_rows(run, tokenizer, preferences(run, "train"))
    call = [{"role": "assistant", "content": "", "tool_calls": [tool_call("refund", {})]}]
    mixed = [{**row, "chosen": call} if k in (1, 5) else {**row, "rejected": call} if k in (2, 6, 8, 9) else row for k, row in enumerate(made)]
    wanted = run.copy()
    wanted.dpo.max_pairs = len(mixed) - 1
    kept = [mixed[place] for place in telling(wanted, tokenizer, mixed)]
    assert len(kept) == len(mixed) - 2
    assert [tool_of(row["chosen"][0]) for row in kept[:4]].count("refund") == [tool_of(row["rejected"][0]) for row in kept[:4]].count("refund") == 2
    assert not [row for row in kept[4:] if "refund" in (tool_of(row["chosen"][0]), tool_of(row["rejected"][0]))], "more of them one way round would teach a habit"
    wanted.dpo.max_pairs = 8
    asked = telling(wanted, tokenizer, [{**row, ("chosen", "rejected")[k % 2]: call} for k, row in enumerate(made)])
    assert sorted(place % 2 for place in asked) == [0] * 4 + [1] * 4, "where there is nothing else, all of them are such"


def test_half_of_the_pairs_are_those_that_sft_gets_most_wrong(run):
    tokenizer = load_tokenizer(run)
    made, _ = preference_rows(run, tokenizer, preferences(run, "train"))
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} if k % 3 == 0 else row for k, row in enumerate(made)]
    wanted = run.copy()
    wanted.dpo.max_pairs = None
    assert telling(wanted, tokenizer, turned) == list(range(len(turned)))
    wanted.dpo.max_pairs = 10
    chosen = [turned[place] for place in telling(wanted, tokenizer, turned)]
    assert len(chosen) == 10
    assert all(row in turned for row in chosen)
    with torch.no_grad():
        from training.adapters import OneBase
        from training.ensemble import leaf
        from training.trees import grow

        model = OneBase(run, tokenizer)
        model.add("sft", stage_dir(run, "sft") / "adapter")

        def margin(row: dict) -> float:
            values = []
            for side in ("chosen", "rejected"):
                ids, length = leaf(tokenizer, row["prompt"], row[side][0], 500)
                tree = grow([ids])
                values.append(float(model.log_likelihoods("sft", [tree], [[tree.leaves[0][-length:]]])[0][0]))
            return values[0] - values[1]

        hardest = sorted(turned, key=margin)[:5]
    assert all(row in chosen for row in hardest)


def test_a_pair_that_is_too_long_to_be_read_is_no_hard_one(run):
    tokenizer = load_tokenizer(run)
    made, _ = preference_rows(run, tokenizer, preferences(run, "train"))
    endless = {**made[0], "rejected": [{"role": "assistant", "content": "no " * run.model.max_tokens}]}
    found = margins(run, tokenizer, [made[1], endless, made[2]])
    assert found == [*margins(run, tokenizer, made[1:3])[:1], math.inf, *margins(run, tokenizer, made[1:3])[1:]]


def test_each_alarm_of_dpo_says_cause_and_next_step(run):
    calm = {"chosen_fall": 0.0, "reply_tokens": 10.0, "reply_tokens_sft": 10.0}
    assert not alarms(calm, run.dpo)
    for change in ({"chosen_fall": 5.0}, {"reply_tokens": 30.0}, {"reply_tokens": 2.0}):
        (line,) = alarms({**calm, **change}, run.dpo)
        assert "Likely cause:" in line
        assert "Next:" in line


@pytest.mark.parametrize(("row", "label"), [
    ({"by": "agent", "rating": 5, "offset": 0.0}, True), ({"by": "agent", "rating": 5, "offset": 1.5}, None), ({"by": "agent", "rating": 2, "offset": 0.0}, False),
    ({"by": "agent", "rating": 3, "offset": 0.0}, None), ({"by": "agent", "label": False}, False), ({"by": "customer", "label": True}, None), ({"by": "customer", "rating": 5}, None)])
def test_a_judgement_is_good_bad_or_says_too_little(run, row, label):
    assert label_of(row, run.kto) is label


@pytest.mark.slow
def test_kto_needs_both_kinds_and_learns_from_them(run):
    kto.run(run)
    assert (stage_dir(run, "kto") / "adapter/adapter_model.safetensors").is_file()
    assert not (stage_dir(run, "kto") / "adapter/ref").exists()
    config = run.copy()
    config.kto.bad, config.fingerprint = 0.0, {"seed": 9}
    with pytest.raises(StageError, match="none is bad: KTO needs both"):
        kto.run(config)
    config = run.copy()
    config.model.max_tokens, config.fingerprint = 3, {"seed": 10}
    with pytest.raises(StageError, match=r"of 0 judgements that are left \(\d+ too long"):
        kto.run(config)


def test_sft_on_what_was_rated_well_takes_nothing_unrated():
    assert is_wanted({"stars": None}, None)
    assert [is_wanted({"stars": stars}, 4.0) for stars in (None, 3.9, 4.0)] == [False, False, True]
