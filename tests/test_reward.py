"""Reward models: what they learn from, what their gate measures, and that what is saved is what was trained."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file

from data_prep.artifacts import StageError, require, stage_dir, stage_output
from data_prep.conversation import tool_call, write_json, write_jsonl
from tests.toys import random_adapter, toy_run
from training import reward
from training.adapters import OneBase
from training.ensemble import combined, leaf
from training.judgements import LARGEST, WAYS, Around, Judged, another_value, answered, check, deal, judged_of, read, spoil, with_numbers_of
from training.models import load_base, load_tokenizer, put_adapter
from training.reward import batch, learn, ordered_logit
from training.reward_gate import (
    Pair,
    accuracy_check,
    bag_of_words,
    calibration_check,
    calibration_error,
    chances,
    contested,
    invariance_check,
    length_check,
    often,
    pairs_of,
    same_words,
    spoiled_check,
    state_check,
    temperature,
)
from training.trees import grow

REPLIES = {"good": "I am glad to help you.", "fair": "Yes.", "bad": "Pay now."}


def judged_rows(count: int) -> tuple[list[dict], list[dict]]:
    """Pairs and single ratings over made-up questions: good beats bad, fair lies between."""
    pairs, ratings = [], []
    for number in range(count):
        prompt = [{"role": "user", "content": f"question {number}"}]
        place = {"conversation_id": f"c-{number}", "locale": "en", "message_index": 1, "prompt": prompt, "raters": [["a"], ["b"]]}
        reply = {name: [{"role": "assistant", "content": text}] for name, text in REPLIES.items()}
        pairs.append({**place, "chosen": reply["good"], "rejected": reply["bad"], "margin": 3.0})
        ratings += [{**place, "completion": reply[name], "rating": stars, "offset": 0.0, "by": "agent", "topic": "t", "rater": "a"} for name, stars in (("good", 5), ("fair", 3), ("bad", 1))]
        ratings.append({**place, "completion": reply["bad"], "rating": 5, "by": "customer", "topic": "t", "rater": "customer"})
    return pairs, ratings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = toy_run(tmp_path_factory.mktemp("reward"), "reward.trainer.max_steps=12", "reward.trainer.save_steps=4", "reward.gate.accuracy=0.6", "trainer.warmup_steps=1",
                     "reward.trainer.learning_rate=1e-2", "reward.trainer.per_device_train_batch_size=4")
    with stage_output(config, "prepare") as out:
        write_json(out / "report.json", {"raters": {"a": {"ratings": 9, "mean": 3.0, "spread": 1.0, "severity": -0.5, "shared": 2, "apart": 1.0, "apart_corrected": 0.5}}})
        for split, count in (("train", 60), ("validation", 20), ("test", 5)):
            pairs, ratings = judged_rows(count)
            write_jsonl(out / f"preferences/{split}.jsonl", pairs)
            write_jsonl(out / f"unpaired/{split}.jsonl", ratings)
    return config


def test_an_ordered_logit_is_a_distribution_that_moves_with_the_reward():
    cuts, stars = torch.tensor([-2.0, 0.1, -0.5, 0.3]), torch.arange(1, 6)
    chance = (-ordered_logit(torch.full((5,), 0.7), stars, torch.zeros(5), cuts)).exp()
    assert float(chance.sum()) == pytest.approx(1, abs=1e-4)
    mean = [float(((-ordered_logit(torch.full((5,), r), stars, torch.zeros(5), cuts)).exp() * stars).sum()) for r in (-3.0, 0.0, 3.0)]
    assert mean == sorted(mean)
    mild, strict = (ordered_logit(torch.zeros(1), torch.tensor([5]), torch.tensor([shift]), cuts) for shift in (1.0, -1.0))
    assert mild < strict, "five stars of a mild rater are no surprise"


def test_a_conversation_is_one_tree_and_customers_do_not_teach(run):
    judged, dropped = read(run, load_tokenizer(run), "train")
    assert (len(judged), dropped) == (60, 0)
    one = judged[0]
    assert len(one.tree.leaves) == 3, "each reply is there once, however often it was judged"
    assert [(stars, offset) for _, stars, offset in one.ratings] == [(5, 0.0), (3, 0.0), (1, 0.0)]
    tokenizer = load_tokenizer(run)
    assert [tokenizer.decode(one.reply(k)) for k in range(3)] == [text + "<|im_end|>" for text in (REPLIES["good"], REPLIES["bad"], REPLIES["fair"])]


def test_a_reply_too_long_for_the_model_is_counted(run):
    tokenizer = load_tokenizer(run)
    assert leaf(tokenizer, [{"role": "user", "content": "hi"}], {"role": "assistant", "content": "no " * 200}, 64) is None
    ids, length = leaf(tokenizer, [{"role": "user", "content": "one " * 80}, {"role": "assistant", "content": "?"}, {"role": "user", "content": "two"}], {"role": "assistant", "content": "yes"}, 40)
    assert len(ids) <= 40
    assert tokenizer.decode(ids[-length:]) == "yes<|im_end|>"


@pytest.mark.slow
def test_the_stage_learns_what_is_better_passes_its_gate_and_goes_on_after_a_kill(run, monkeypatch):
    plain, calls = reward.learn, []

    def learn_and_die(*args):
        calls.append(plain(*args))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(reward, "learn", learn_and_die)
    with pytest.raises(KeyboardInterrupt):
        reward.run(run)
    monkeypatch.setattr(reward, "learn", plain)
    reward.run(run)
    folder = stage_dir(run, "reward")
    gate, metrics = json.loads((folder / "gate.json").read_text()), json.loads((folder / "metrics.json").read_text())
    accuracy = next(c for c in gate["checks"] if c["name"] == "accuracy")
    assert accuracy["passed"]
    assert accuracy["n"] == 25
    assert next(c for c in gate["checks"] if c["name"] == "calibration_error")["passed"] is None, "25 pairs say nothing of calibration"
    assert metrics["accuracy_by_rater"].keys() == {"a", "b"}
    assert all(row["low"] < row["value"] <= row["high"] for row in metrics["accuracy_by_rater"].values())
    page = (folder / "report.html").read_text()
    assert all(f">{name}<" in page for name in ("accuracy", "spoiled", "invariance", "-0.50", "Raters"))
    tokenizer = load_tokenizer(run)
    model = OneBase(run, tokenizer)
    model.add("reward_0", folder / "members/0")
    tree = grow([leaf(tokenizer, [{"role": "user", "content": "question 7 again"}], {"role": "assistant", "content": REPLIES[name]}, 200)[0] for name in ("good", "bad")])
    good, bad = model.scores("reward_0", [tree], [[path[-2:] for path in tree.leaves]])[0]
    assert good > bad


@pytest.mark.slow
def test_a_killed_member_goes_on_to_the_same_weights(run, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(run)
    judged, _ = read(run, tokenizer, "train")
    learn(run, judged, tmp_path / "whole", 0)

    def die(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        if self.state.global_step == 8:
            raise KeyboardInterrupt

    plain = reward.RewardLearner._save_checkpoint
    monkeypatch.setattr(reward.RewardLearner, "_save_checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        learn(run, judged, tmp_path / "killed", 0)
    monkeypatch.setattr(reward.RewardLearner, "_save_checkpoint", plain)
    learn(run, judged, tmp_path / "killed", 0)
    assert (tmp_path / "whole/probe.json").read_text() == (tmp_path / "killed/probe.json").read_text()


@pytest.mark.slow
def test_members_that_learn_side_by_side_are_those_that_learn_one_after_another(run, tmp_path):
    """On a CPU each has a process and a thread of its own; the toy run has one thread, so that there they come one by one."""
    judged, _ = read(run, load_tokenizer(run), "train")
    both = run.copy()
    both.hardware.threads = 2
    curves = [reward.learn_all(config, [judged, judged[::2]], [tmp_path / name / str(k) for k in range(2)]) for config, name in ((run, "after"), (both, "beside"))]
    assert curves[0] == curves[1]
    for k in range(2):
        assert (tmp_path / f"after/{k}/probe.json").read_text() == (tmp_path / f"beside/{k}/probe.json").read_text()


def test_a_reward_model_starts_from_what_sft_learned_and_leaves_the_base_as_it_was(run, tmp_path):
    """Its LoRA once had another rank, and the weights that found no place were passed over in silence."""
    judged, _ = read(run, load_tokenizer(run), "train")
    stays, base = run.copy(), load_base(run)
    stays.reward.trainer.max_steps, stays.reward.trainer.learning_rate = 1, 0.0
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    learn(stays, judged, tmp_path / "member", 0, base=base)
    sft, mine = (load_file(folder / "adapter_model.safetensors") for folder in (stage_dir(run, "sft") / "adapter", tmp_path / "member"))
    assert sft.keys() == mine.keys()
    assert all(torch.equal(sft[name], mine[name]) for name in sft)
    assert base.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


@pytest.mark.parametrize("other", [{"sft.lora.r": 8}, {"sft.lora.target_modules": ["q_proj"]}])
def test_an_adapter_whose_weights_are_others_than_its_configuration_says_is_refused(run, tmp_path, other):
    """The configuration of one, the weights of another: PEFT leaves what is missing as it was drawn, and says so in a warning alone."""
    strange, base = run.copy(), load_base(run)
    for key, value in other.items():
        OmegaConf.update(strange, key, value)
    random_adapter(base, strange, tmp_path / "other")
    shutil.copytree(stage_dir(run, "sft") / "adapter", tmp_path / "sft")
    shutil.copy(tmp_path / "other/adapter_model.safetensors", tmp_path / "sft")
    with pytest.raises(StageError, match="was made for another base model than this run's"):
        put_adapter(base, "default", tmp_path / "sft")


KINDS = st.sampled_from(["refund", "block", "text"])


def test_a_conversation_with_many_judged_replies_becomes_trees_that_fit_into_memory(run):
    """Attention takes the square of a tree's tokens: a dialogue of 53 judged replies was one tree of 9,694, and sixteen of such took all of a machine's memory."""
    talk = [{"role": role, "content": f"{role} {turn} " + "word " * 12} for turn in range(12) for role in ("user", "assistant")]
    place = {"conversation_id": "c", "locale": "en", "raters": [["a"], ["b"]], "topic": "t"}
    rows = [{**place, "prompt": talk[:at], "completion": [{"role": "assistant", "content": f"{draft} " * 10}], "rating": 1 + draft % 5, "offset": 0.0} for at in range(1, 24, 2) for draft in range(6)]
    rows += [{**place, "prompt": talk[:at], "chosen": [talk[at]], "rejected": [{"role": "assistant", "content": "no"}], "margin": 1.0} for at in range(1, 24, 2)]
    tokenizer = load_tokenizer(run)
    (whole,) = judged_of(tokenizer, rows, "t", 10_000)
    parts = judged_of(tokenizer, rows, "t", most := len(whole.tree.ids) // 4)
    assert max(len(part.tree.ids) for part in parts) <= LARGEST * most < len(whole.tree.ids)

    def told(judged: list[Judged]) -> list:
        return sorted([("pair", one.reply(better), one.reply(worse), gap) for one in judged for better, worse, gap in one.pairs] + [("stars", one.reply(at), [], stars) for one in judged for at, stars, _ in one.ratings])

    assert told(parts) == told([whole])
    assert {part.topic for part in parts} == {"t"}


@given(st.lists(st.tuples(KINDS, KINDS), max_size=40))
def test_pairs_are_contested_where_the_same_kinds_are_better_now_one_now_the_other(kinds):
    for (better, worse), found in zip(kinds, contested(kinds), strict=True):
        same, other = kinds.count((better, worse)), kinds.count((worse, better))
        assert found == (better != worse and other > 0 and same / (same + other) >= 0.2 and other / (same + other) >= 0.2)


@given(st.integers(1, 30), st.integers(0, 10), st.floats(0.1, 0.8))
def test_conversations_with_contested_pairs_come_more_often(run, plain, hot, share):
    """A refund is better than a sentence in some conversations, worse in others; in the rest two sentences are compared."""
    tokenizer = load_tokenizer(run)

    def one(better: str, worse: str) -> Judged:
        leaves = [tokenizer(text)["input_ids"] for text in (better, worse)]
        return Judged(grow(leaves), [len(each) for each in leaves], [(0, 1, 1.0)], [(0, 5, 0.0)], [[]])

    call, text = '{"name": "refund"}', REPLIES["good"]
    judged = [one(text, REPLIES["bad"]) for _ in range(plain)] + [one(*((call, text) if k % 2 else (text, call))) for k in range(hot)]
    made = often(tokenizer, judged, share)
    assert all(any(x is y for y in made) for x in judged), "nothing is lost"
    held = sum(any(x.tree is y.tree for y in judged[plain:]) for x in made)
    assert len(made) - held == plain
    assert sum(len(x.ratings) for x in made) == len(judged), "a single rating comes once"
    if hot > 1:
        times = held / hot
        assert times == max(1, round(share / (1 - share) * plain / hot))
    else:
        assert held == hot


def test_a_saved_model_that_scores_otherwise_is_refused(run, tmp_path):
    tokenizer = load_tokenizer(run)
    judged, _ = read(run, tokenizer, "validation")
    learn(run, judged, tmp_path / "members/0", 0)
    model = OneBase(run, tokenizer)
    model.add("reward_0", tmp_path / "members/0")
    reward.check_reload(model, tmp_path, ["members/0"], [judged])
    with torch.no_grad():
        model.heads["reward_0"].linear.weight.add_(1.0)
    with pytest.raises(StageError, match="scores differently after loading"):
        reward.check_reload(model, tmp_path, ["members/0"], [judged])


def test_what_cannot_teach_is_said():
    with pytest.raises(StageError, match="collect ratings of replies"):
        check([Judged(grow([[1]]), [1])])
    with pytest.raises(StageError, match="all ratings are 4"):
        check([Judged(grow([[1]]), [1], ratings=[(0, 4, 0.0)])])
    both = Judged(grow([[1], [2]]), [1, 1], ratings=[(0, 4, 0.0), (1, 2, 0.0)])
    with pytest.raises(StageError, match="of one conversation: two at least"):
        check([both])
    check([both, both])


@pytest.mark.parametrize(("change", "says"), [({"sources": ["pairs", "rating"]}, "must be pairs, ratings or both"), ({"sources": []}, "must be pairs"), ({"contested": 1.0}, "less than 1")])
def test_a_source_that_there_is_not_is_said(run, change, says):
    config = OmegaConf.merge(run, {"reward": change})
    with pytest.raises(StageError, match=says):
        reward.run(config)


def test_parts_share_no_conversation_and_are_always_the_same():
    judged = [Judged(grow([[k, k + 1]]), [1]) for k in range(30)]
    parts = deal(judged, 4)
    assert sorted(id(one) for part in parts for one in part) == sorted(map(id, judged))
    assert [[one.tree.ids for one in part] for part in parts] == [[one.tree.ids for one in part] for part in deal(judged[::-1], 4)]


def test_a_batch_numbers_replies_across_conversations():
    some = [Judged(grow([[1, 2], [1, 3]]), [1, 1], [(0, 1, 2.0)]), Judged(grow([[4, 5], [4, 6]]), [1, 1], [(1, 0, 1.0)], [(0, 2, 0.5)])]
    made = batch(some, 0)
    assert made["pairs"][0].tolist() == [0, 3]
    assert made["pairs"][1].tolist() == [1, 2]
    assert made["ratings"][0].tolist() == [2]
    assert made["good"].tolist() == [True, False, False, True]
    assert made["ends"].tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]


def test_an_ensemble_is_pessimistic_where_its_members_disagree():
    calibration = {"members": [{"mean": 1.0, "std": 2.0}, {"mean": 0.0, "std": 1.0}], "spread_penalty": 0.5}
    agreed, split = combined(torch.tensor([[3.0, 1.0], [1.0, 2.0]]), calibration)
    assert float(agreed) == pytest.approx(1.0)
    assert float(split) == pytest.approx(1.0 - 0.5 * 1.0)


# --------------------------------------------------------------------------------------------------------------------
# The gate
# --------------------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 100), st.floats(0.3, 3.0))
def test_calibration_is_found_whatever_the_scale(seed, scale):
    """Outcomes drawn with probability sigmoid(x): scores of scale * x are calibrated by the temperature, and the error is small."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2, 4000)
    apart = np.where(rng.random(4000) < 1 / (1 + np.exp(-x)), x, -x) * scale
    assert temperature(apart) == pytest.approx(scale, rel=0.25)
    assert calibration_error(chances(apart)) < 0.05


def test_overconfidence_is_an_error_and_too_few_pairs_are_no_judgement():
    rng = np.random.default_rng(0)
    p = np.where(rng.random(4000) < 0.7, 0.99, 0.01)
    assert calibration_error(p) == pytest.approx(0.29, abs=0.03)
    assert calibration_check(rng.normal(1, 1, 500), 0.05)["passed"] is None


def test_accuracy_is_held_to_the_lower_end_of_its_interval():
    assert not accuracy_check(np.array([1.0] * 8 + [-1.0] * 2), 0.7)["passed"], "8 of 10 may be luck"
    assert accuracy_check(np.array([1.0] * 800 + [-1.0] * 200), 0.7)["passed"]
    assert accuracy_check(np.zeros(100), 0.5)["value"] == 0.5, "ties are worth a half"


def pair(better: list[int], worse: list[int], gap: float = 1.0) -> Pair:
    return Pair((0, 0), (0, 1), gap, [["a"], ["b"]], (better, worse))


def test_a_reward_that_counts_tokens_is_caught():
    rng = np.random.default_rng(1)
    pairs = [pair([1] * int(a), [1] * int(b), float(g)) for a, b, g in zip(rng.integers(1, 30, 300), rng.integers(1, 30, 300), rng.uniform(0.75, 4, 300), strict=True)]
    longer = np.array([len(p.said[0]) - len(p.said[1]) for p in pairs], dtype=float)
    assert not length_check(longer, pairs, 0.3)["passed"]
    assert length_check(np.array([p.gap for p in pairs]), pairs, 0.3)["passed"]


def test_words_alone_do_not_pass_where_the_world_decides(run):
    tokenizer = load_tokenizer(run)
    refund, refuse = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ('<tool_call>{"name": "issue_refund", "arguments": {}}</tool_call>', "too late, I cannot do that"))
    pairs = [pair(refund, refuse) if k % 2 else pair(refuse, refund) for k in range(100)]
    assert len(same_words(tokenizer, pairs)) == 100
    knows, guesses = np.ones(100), np.where(np.arange(100) % 2, 1.0, -1.0)
    assert state_check(tokenizer, knows, pairs, pairs, 0.0)["passed"]
    assert not state_check(tokenizer, guesses, pairs, pairs, 0.0)["passed"]
    numbers = [pair(tokenizer("in 31 days")["input_ids"], tokenizer("in 13 days")["input_ids"])]
    assert same_words(tokenizer, numbers) == [0]
    assert not same_words(tokenizer, [pair(refuse, tokenizer("yes of course")["input_ids"])])


def test_a_bag_of_words_learns_what_words_tell():
    pairs = [pair([7, 8], [9]) for _ in range(50)]
    assert (bag_of_words(pairs, pairs[:5]) > 0).all()


def test_where_no_prompt_has_two_replies_tickets_of_a_kind_are_compared():
    def rated(stars: int, offset: float, topic: str) -> Judged:
        return Judged(grow([[1, stars]]), [1], ratings=[(0, stars, offset)], topic=topic)

    judged = [rated(5, 0.0, "a"), rated(1, 0.0, "a"), rated(5, 2.5, "b"), rated(2, 0.0, "b"), rated(4, 0.0, "c")]
    assert [(p.better, p.worse, p.gap) for p in pairs_of(judged)] == [((0, 0), (1, 0), 4.0)], "in b the better rating was the rater's mildness, c has none to compare"


def test_no_more_is_read_than_is_asked_for(run):
    tokenizer = load_tokenizer(run)
    every, _ = read(run, tokenizer, "train")
    assert read(run, tokenizer, "train", 0) == ([], 0)
    for most in (1, 5, 40):
        some, _ = read(run, tokenizer, "train", most)
        assert some == every[:len(some)]
        assert sum(len(one.pairs) for one in some[:-1]) < most <= sum(len(one.pairs) for one in some)


def test_batch_padding_and_order_do_not_matter(run):
    tokenizer = load_tokenizer(run)
    model = OneBase(run, tokenizer)
    model.add("reward_0", require(run, "reward", "test") / "members/0")
    judged, _ = read(run, tokenizer, "validation")
    assert invariance_check(model, judged)["passed"]


def test_good_replies_are_spoiled_in_every_way_and_never_by_numbers_alone(run):
    tokenizer = load_tokenizer(run)
    texts = ("ja, das geht", "nein, das nicht", "yes, of course", "no, I am sorry", "order 17", "order 23", "it is paid", "it is sent", "pay 13")
    ids = {text: [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts}

    def one(language: str, topic: str, prompt: int | list[int], *texts: str) -> Judged:
        leaves = [[*(prompt if isinstance(prompt, list) else [prompt + k]), *ids[text]] for k, text in enumerate(texts)]
        return Judged(grow(leaves), [len(ids[text]) for text in texts], ratings=[(k, 5, 0.0) for k in range(len(texts))], topic=topic, places=[(language, "user")] * len(texts))

    ways, concerns = set(), 0
    for seed in range(40):
        before = [one("de", "a", 5, "ja, das geht", "nein, das nicht"), one("en", "a", 8, "yes, of course", "no, I am sorry"), one("fi", "a", 11, "order 17"), one("fi", "b", 14, "order 23"),
                  one("sv", "a", 17, "it is paid"), one("sv", "b", 20, "it is sent"), one("no", "a", tokenizer("due 13 or 18", add_special_tokens=False)["input_ids"], "pay 13")]
        for whole, judged in zip(before, spoil(tokenizer, before, random.Random(seed)), strict=True):
            assert judged.ratings == whole.ratings
            assert [judged.reply(leaf) for leaf in range(len(whole.lengths))] == [whole.reply(leaf) for leaf in range(len(whole.lengths))], "what was judged is still there"
            for right, wrong, way in judged.spoiled:
                ways.add(way)
                assert judged.tree.leaves[wrong][0] == judged.tree.leaves[right][0], "the prompt stays"
                made, good = tokenizer.decode(judged.reply(wrong)), tokenizer.decode(judged.reply(right))
                assert made != good
                if way == "cut short":
                    assert good.startswith(made.removesuffix("<|im_end|>"))
                if way == "another concern":
                    assert {good.removesuffix("<|im_end|>"), made.removesuffix("<|im_end|>")} in ({"it is paid", "it is sent"}, {"ja, das geht", "nein, das nicht"}, {"yes, of course", "no, I am sorry"})
                    concerns += 1
                assert way != "another concern" or not good.startswith("order"), "another number is no other wording"
                if way == "another value":
                    assert (good, made) == ("pay 13<|im_end|>", "pay 18<|im_end|>"), "the only one that takes a number from its conversation"
    assert ways == set(WAYS)
    assert concerns > 20


def test_what_is_put_in_a_replys_place_is_about_as_often_right_as_wrong(run):
    """Conversations about one concern are in the majority, as those with contested pairs are, and some have many good replies of which few are spoiled."""
    tokenizer = load_tokenizer(run)
    topics = {"refund": 1, "address": 1, "invoice": 1, "fee": 8, "late": 8, "moved": 8}
    said = {topic: [[*tokenizer(f"{topic} {word}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for word in ["a", "b", "c", "d", "e", "f", "g", "h"][:count]] for topic, count in topics.items()}

    def one(topic: str, number: int) -> Judged:
        leaves = [[number, *reply] for reply in said[topic]]
        return Judged(grow(leaves), [len(leaf) - 1 for leaf in leaves], ratings=[(k, 5, 0.0) for k in range(len(leaves))], topic=topic, places=[("en", "user")] * len(leaves))

    judged = [one(topic, number) for topic in topics for number in range(1200 if topic == "refund" else 600)]
    right, wrong = (Counter(tokenizer.decode(each.reply(pair[side])).split()[0] for each in spoil(tokenizer, judged, random.Random(0)) for pair in each.spoiled if pair[2] == "another concern")
                    for side in (0, 1))
    assert set(right) == set(topics)
    for topic in right:
        assert 0.7 < wrong[topic] / right[topic] < 1.4, topic


def test_a_number_that_was_taken_from_the_conversation_is_put_wrong_and_no_other(run):
    tokenizer = load_tokenizer(run)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    digits = {token for token in range(len(tokenizer)) if tokenizer.decode([token]).strip().isdigit()}
    around = Around(ids("order 20362 has days 6 and due 13, fee 18"), [], [], [], [], digits)
    made = {tokenizer.decode(another_value(ids("pay in 13 days, 99 at most"), around, random.Random(seed))) for seed in range(50)}
    assert made == {"pay in 6 days, 99 at most", "pay in 18 days, 99 at most"}, "99 is not of the conversation, and 20362 is no number of that kind"
    assert another_value(ids("pay in 77 days"), around, random.Random(0)) == ids("pay in 77 days")
    assert another_value(ids("pay in 13 days"), around._replace(before=ids("due 13")), random.Random(0)) == ids("pay in 13 days"), "there is no other"


def test_what_comes_from_elsewhere_has_the_numbers_of_where_it_is_put(run):
    tokenizer = load_tokenizer(run)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    digits = {token for token in range(len(tokenizer)) if tokenizer.decode([token]).strip().isdigit()}
    before = ids("order 20362 has days 6 and due 13, fee 18")
    made = {tokenizer.decode(with_numbers_of(before, ids("cancel 83762 within 99 days, 777 euro"), digits, random.Random(seed))) for seed in range(50)}
    assert made == {"cancel 20362 within 13 days, 777 euro", "cancel 20362 within 18 days, 777 euro"}, "there is none of three digits"
    assert with_numbers_of(before, ids("you are welcome"), digits, random.Random(0)) == ids("you are welcome")


def test_a_deed_that_another_concern_brings_about_is_put_where_nobody_asked_for_it(run):
    tokenizer, call = load_tokenizer(run), '<tool_call>{"name": "cancel_order", "arguments": {"order_number": "%s"}}</tool_call>'
    said = {"cancel": call % 11111, "status": "it is sent"}
    made = []
    for number in range(40):
        for topic, text in said.items():
            before, reply = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (f"order {20000 + number}:", text))
            reply = [*reply, tokenizer.eos_token_id]
            made.append(Judged(grow([[*before, *reply]]), [len(reply)], ratings=[(0, 5, 0.0)], topic=topic, places=[("en", "get_order")]))
    spoiled = [(number, one, wrong) for number, one in enumerate(spoil(tokenizer, made, random.Random(0))) for _, wrong, way in one.spoiled if way == "unasked"]
    assert len(spoiled) > 5
    for number, one, wrong in spoiled:
        assert one.topic == "status", "it was asked for in the others"
        assert tokenizer.decode(one.reply(wrong)).startswith(call % (20000 + number // 2))


def test_who_is_answered_is_the_customer_or_the_tool_whose_result_stands_last():
    called = {"role": "assistant", "content": "", "tool_calls": [tool_call("get_order", {"order_number": "1"})]}
    assert answered([{"role": "user", "content": "where is it?"}]) == "user"
    assert answered([called, {"role": "tool", "content": "{}"}]) == "get_order"
    assert answered([called, {"role": "user", "content": "well?"}]) == "user"
    assert answered([{"role": "tool", "content": "{}"}]) == "tool", "a call that was cut off"


def test_a_reward_that_does_not_read_the_conversation_is_caught():
    judged = [Judged(grow([[k, 1], [k, 2]]), [1, 1], spoiled=[(0, 1, "cut short")]) for k in range(10, 210)]
    assert spoiled_check(np.tile([1.0, 0.0], 200), judged, 0.9)["passed"]
    assert not spoiled_check(np.tile([1.0, 0.0, 0.0, 1.0], 100), judged, 0.9)["passed"]
    assert spoiled_check(np.zeros(0), [], 0.9)["passed"] is None
