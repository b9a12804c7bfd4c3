"""PPO: the mathematics against definitions, one base with swapped adapters, refusal, the KL budget, resuming, several processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file

from conf.load import load_config
from data_prep.artifacts import StageError, outputs_hash, read_manifest, stage_dir, stage_output
from data_prep.company.pack import load_pack
from data_prep.conversation import read_jsonl, write_json
from data_prep.hermes import parse_reply
from tests.toys import ROOT, random_adapter, toy_run
from training import ppo
from training.adapters import OneBase
from training.advantages import at_branches, gae
from training.alarms import alarms, measured
from training.ensemble import leaf
from training.group import Group
from training.models import load_base, load_tokenizer
from training.ppo import Sample, adapted, appraise, load_players, most_surprising, policy_loss, update, value_loss, whiten
from training.rollouts import Episode, Local, Turn, play, some_of, well_rated
from training.trees import grow

NUMBERS = st.floats(-3, 3, width=16).filter(lambda x: x == 0 or abs(x) > 1e-3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return toy_run(tmp_path_factory.mktemp("ppo"), "ppo.steps=3", "ppo.episodes=6", "ppo.max_replies=2", "ppo.save_steps=1", "ppo.learning_rate=1e-2", "ppo.kl_budget=1e6")


@pytest.fixture(scope="module")
def alone(run):
    """One reply to a prompt: with a value model."""
    return OmegaConf.merge(run, {"ppo": {"drafts": 1}})


@pytest.fixture
def model(alone):
    return load_players(alone, load_tokenizer(alone))


def test_advantages_follow_the_definition():
    """Schulman et al. 2016, eq. 16: the sum of (gamma lambda)^l delta_{t+l}, here over one reply with no discount."""
    values, costs, lam = torch.tensor([0.5, -0.2, 0.3]), torch.tensor([0.1, 0.0, -0.2]), 0.9
    rewards = -costs + torch.tensor([0.0, 0.0, 2.0])
    deltas = rewards + torch.tensor([-0.2, 0.3, 0.0]) - values
    expected = torch.stack([sum(lam ** k * deltas[t + k] for k in range(3 - t)) for t in range(3)])
    advantages, returns = gae([values], [costs], [2.0], lam, 0.0)
    assert torch.allclose(advantages, expected, atol=1e-6)
    assert torch.allclose(returns, expected + values, atol=1e-6)


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=4), min_size=1, max_size=4), st.lists(NUMBERS, min_size=4, max_size=4))
def test_without_turn_discount_each_reply_is_an_episode_of_its_own(values, scores):
    turns, zero = [torch.tensor(v) for v in values], [torch.zeros(len(v)) for v in values]
    together, _ = gae(turns, zero, scores[:len(turns)], 0.95, 0.0)
    alone = torch.cat([gae([turn], [cost], [score], 0.95, 0.0)[0] for turn, cost, score in zip(turns, zero, scores, strict=False)])
    assert torch.allclose(together, alone, atol=1e-5)


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=4), min_size=1, max_size=4), st.lists(NUMBERS, min_size=4, max_size=4))
def test_with_lambda_one_a_return_is_all_that_follows(values, scores):
    turns, zero = [torch.tensor(v) for v in values], [torch.zeros(len(v)) for v in values]
    scores = scores[:len(turns)]
    _, returns = gae(turns, zero, scores, 1.0, 1.0)
    expected = torch.cat([torch.full((len(v),), sum(scores[k:])) for k, v in enumerate(values)])
    assert torch.allclose(returns, expected, atol=1e-4)


@given(NUMBERS, st.floats(-1, 1, width=16).filter(lambda x: min(abs(x - 0.1823), abs(x + 0.2231)) > 1e-3))
def test_the_clip_takes_away_what_would_go_too_far_and_nothing_else(advantage, move):
    old, new = torch.zeros(1), torch.tensor([move], requires_grad=True)
    loss, cut = policy_loss(new, old, torch.tensor([advantage]), 0.2)
    loss.sum().backward()
    too_far = (advantage > 0 and move > torch.tensor(1.2).log()) or (advantage < 0 and move < torch.tensor(0.8).log())
    assert (new.grad.abs() < 1e-12).item() == (too_far or advantage == 0)
    assert bool(cut) == bool(too_far)


def test_a_value_gains_nothing_by_moving_too_far():
    assert value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), 0.2).item() == pytest.approx(0.5 * 0.8 ** 2)
    assert value_loss(torch.tensor([0.1]), torch.tensor([0.0]), torch.tensor([1.0]), 0.2).item() == pytest.approx(0.5 * 0.9 ** 2)


def test_beta_rises_with_the_kl_and_falls_without():
    assert adapted(0.1, 4.0, 2.0) > 0.1 > adapted(0.1, 0.5, 2.0)
    assert adapted(0.1, 100.0, 2.0) == pytest.approx(0.12)


def test_an_adapter_is_put_back_whatever_happens(model):
    before = model.model.active_adapter
    with pytest.raises(RuntimeError), model.using("value"):
        assert model.model.active_adapter == "value"
        raise RuntimeError
    assert model.model.active_adapter == before


def episodes_of(model: OneBase, count: int = 4, beside: bool = False) -> list[Episode]:
    """Recorded rollouts of two replies each, to two prompts or `beside` each other: the same on every process."""
    rng, size = torch.Generator().manual_seed(0), len(model.tokenizer)
    draw = lambda n: torch.randint(5, size, (n,), generator=rng).tolist()  # noqa: E731
    made = []
    for _ in range(count):
        first = Turn(draw(9), [*draw(4), model.tokenizer.eos_token_id])
        made.append(Episode([first, Turn(first.prompt, draw(6), is_draft=True) if beside else Turn(first.prompt + first.reply + draw(5), draw(6))]))
    return made


def test_log_probs_and_values_in_a_tree_are_those_of_the_rows(model):
    episode = episodes_of(model, 1)[0]
    tree, replies = episode.tree()
    with torch.no_grad(), model.using("policy"):
        packed, _ = model.log_probs([tree], [replies])
        rows = []
        for turn in episode.turns:
            logits = model.model(input_ids=torch.tensor([turn.prompt + turn.reply])).logits[0].log_softmax(-1)
            rows += [logits[len(turn.prompt) + k - 1, token] for k, token in enumerate(turn.reply)]
    assert torch.allclose(packed, torch.stack(rows), atol=1e-4)


def test_a_reward_stands_on_the_last_real_token_and_a_cut_reply_costs(model, alone):
    episodes = episodes_of(model)
    scored = {}

    def reward(_, trees, replies):
        scored["ends"] = [tree.ids[places[-1]] for tree, mine in zip(trees, replies, strict=True) for places in mine]
        return torch.zeros(len(scored["ends"]))

    samples = appraise(model, episodes, reward, 0.0, alone.ppo, Group())
    entry = measured(samples, lambda trees, replies: torch.full((sum(map(len, replies)),), 2.0), Group())
    assert scored["ends"] == [turn.reply[-1] for episode in episodes for turn in episode.turns]
    assert entry["cut_off"] == 0.5, "every second turn has no end token"
    assert entry["held_out"] == pytest.approx(2.0)
    assert entry["replies"] == 2.0
    assert entry["reward"] == pytest.approx(-0.5 * alone.ppo.missing_end_penalty)
    every = torch.cat([s.advantages for s in samples])
    assert float(every.mean()) == pytest.approx(0, abs=1e-5)
    assert float(every.std(correction=0)) == pytest.approx(1, abs=1e-4)


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.floats(-5, 5)), min_size=1, max_size=5))
def test_each_token_is_credited_with_what_it_decides(drafts):
    replies, scores = [[*reply, 9] for reply, _ in drafts], [score for _, score in drafts]
    credits = at_branches(replies, scores).split([len(reply) for reply in replies])
    for reply, credit in zip(replies, credits, strict=True):
        same = [other for other, each in zip(scores, replies, strict=True) if each == reply]
        assert float(credit.sum()) == pytest.approx(mean(same) - mean(scores), abs=1e-4), "what is left between equal replies no token decides"
        for place in range(len(reply)):
            if all(other[:place + 1] == reply[:place + 1] for other in replies if other[:place] == reply[:place]):
                assert float(credit[place]) == pytest.approx(0, abs=1e-6), "nothing is decided where all go on alike"


def test_what_nothing_decides_keeps_no_advantage_and_the_reply_above_its_fellows_is_the_surprise(run):
    """Also where all are bad: advantages are not moved to a mean of 0."""
    model, settings = load_players(run, load_tokenizer(run)), OmegaConf.merge(run.ppo, {"prompt_weight": 0.0})
    end = model.tokenizer.eos_token_id
    said = [[11, 12, end], [11, 12, end], [11, 13, end], [11, 12, end]]
    episodes = [Episode([Turn([5, 6, 7], reply, is_draft=k > 0) for k, reply in enumerate(replies)]) for replies in (said, [said[0]] * 4)]
    assert episodes[0].places() == [[0, 1, 2, 3]]
    some, none = appraise(model, episodes, lambda *_: torch.tensor([0.0, 0.0, 2.0, 0.0, -1.0, -1.0, -1.0, -1.0]), 0.0, settings, Group())
    assert none.advantages.tolist() == [0.0] * 12
    assert none.surprise == 0
    assert some.surprise == pytest.approx(1.5)
    better, worse = some.advantages[6:9], some.advantages[:3]
    assert better[1] > 0 > worse[1]
    assert better[0] == better[2] == worse[0] == worse[2] == 0
    assert len(some.values) == len(some.returns) == 0


def test_where_all_say_the_same_wrong_thing_it_becomes_less_likely_and_is_met_again(run):
    model = load_players(run, load_tokenizer(run))
    end = model.tokenizer.eos_token_id
    episodes = [Episode([Turn([5, 6, 7], [first, 12, end], is_draft=k > 0) for k in range(4)]) for first in (11, 13)]
    wrong, right = appraise(model, episodes, lambda *_: torch.tensor([-1.0] * 4 + [1.0] * 4), 0.0, run.ppo, Group())
    assert (wrong.advantages < 0).all()
    assert (right.advantages > 0).all()
    assert wrong.surprise == pytest.approx(run.ppo.prompt_weight)
    assert right.surprise == 0


def test_without_a_value_model_the_better_draft_becomes_likelier_and_the_worse_one_less(run):
    model = load_players(run, load_tokenizer(run))
    assert "value" not in model.heads
    end, prompt = model.tokenizer.eos_token_id, [5, 6, 7]
    replies = [[11, end], [12, end]]

    def likelihoods() -> list[float]:
        with torch.no_grad(), model.using("policy"):
            tree = grow([prompt + reply for reply in replies])
            return [float(each) for each in model.log_probs([tree], [[path[-2:] for path in tree.leaves]])[0][::2]]

    before = likelihoods()
    episodes = [Episode([Turn(prompt, reply, is_draft=k > 0) for k, reply in enumerate(replies)])]
    optimizer = torch.optim.AdamW(model.parameters("policy"), lr=3e-3)
    for _ in range(5):
        samples = appraise(model, episodes, lambda *_: torch.tensor([1.0, -1.0]), 0.0, run.ppo, Group())
        logged = update(model, optimizer, samples, run.ppo, Group())
    after = likelihoods()
    assert after[0] > before[0] + 0.5
    assert after[1] < before[1] - 0.1
    assert set(logged) == {"policy_loss", "clipped", "entropy"}
    assert "explained" not in measured(samples, lambda trees, replies: torch.zeros(2), Group())


def test_the_first_of_the_replies_drawn_is_said_and_the_others_are_scored_too(run):
    tokenizer, pack = load_tokenizer(run), load_pack(run.company)
    model = OneBase(run, tokenizer)
    model.add("policy", stage_dir(run, "sft") / "adapter")
    episodes = play(Local(model, "policy", 6), tokenizer, pack, [3, 4], 0, 1, 3, 2, run.model.max_tokens, 6)
    for episode in episodes:
        assert [turn.is_draft for turn in episode.turns] == [False, True, True] * (len(episode.turns) // 3)
        said = [m for m in episode.talk.messages if m["role"] == "assistant"]
        assert [m["content"] for m in said] == [parse_reply(tokenizer.decode(turn.reply, skip_special_tokens=True))["content"] for turn in episode.turns if not turn.is_draft]
        tree, replies = episode.tree()
        assert len(replies) == len(episode.turns)
        assert len({tuple(turn.prompt) for turn in episode.turns[:3]}) == 1
        assert [[tree.ids[place] for place in places] for places in replies] == [turn.reply for turn in episode.turns]


def test_drafts_and_credit_for_what_follows_do_not_go_together(run):
    both = run.copy()
    both.ppo.turn_discount = 0.5
    with pytest.raises(StageError, match="nothing follows a draft"):
        ppo.run(both)


def test_an_update_moves_policy_and_value_and_nothing_else(model, alone):
    frozen = {name: p.clone() for name, p in model.model.named_parameters() if ".policy." not in name and ".value." not in name}
    heads = {name: head.linear.weight.clone() for name, head in model.heads.items() if name != "value"}
    moving = {name: [p.clone() for p in model.parameters(name)] for name in ("policy", "value")}
    samples = appraise(model, episodes_of(model), lambda *_: torch.arange(8.0), 0.1, alone.ppo, Group())
    optimizer = torch.optim.AdamW(model.parameters("policy") + model.parameters("value"), lr=1e-3)
    update(model, optimizer, samples, alone.ppo, Group())
    assert all(torch.equal(p, frozen[name]) for name, p in model.model.named_parameters() if name in frozen)
    assert all(torch.equal(model.heads[name].linear.weight, weight) for name, weight in heads.items())
    for name, before in moving.items():
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(name), strict=True)), name


@pytest.mark.parametrize(("lam", "updates"), [(0.95, 10), (1.0, 25)])
def test_what_is_rewarded_becomes_likelier(model, alone, lam, updates):
    """Two replies to one prompt, one rewarded: after some updates it is likelier than before, and the other one less likely. With lam=1 that is said of how
    the other one begins: how it would go on says nothing once the value model knows where it leads."""
    settings = OmegaConf.merge(alone.ppo, {"lam": lam})
    prompt, good, bad = [5, 6, 7], [11, 12, model.tokenizer.eos_token_id], [21, 22, model.tokenizer.eos_token_id]
    episodes = [Episode([Turn(prompt, reply)]) for reply in (good, bad)]

    def likelihood(reply: list[int]) -> torch.Tensor:
        with torch.no_grad(), model.using("policy"):
            tree = grow([prompt + reply])
            return model.log_probs([tree], [[tree.leaves[0][-len(reply):]]])[0]

    before = likelihood(good), likelihood(bad)
    optimizer = torch.optim.AdamW(model.parameters("policy") + model.parameters("value"), lr=3e-3)
    for _ in range(updates):
        samples = appraise(model, episodes, lambda *_: torch.tensor([1.0, -1.0]), 0.0, settings, Group())
        update(model, optimizer, samples, settings, Group())
    assert likelihood(good).sum() > before[0].sum() + 0.5
    if lam < 1:
        assert likelihood(bad).sum() < before[1].sum() - 0.5
    assert likelihood(bad)[0] < before[1][0] - 0.1
    assert (likelihood(good).sum() - likelihood(bad).sum()) - (before[0].sum() - before[1].sum()) > 1


def test_a_reply_is_as_likely_as_it_was_to_be_drawn(model, alone):
    """At whatever temperature: else the first update would already find a policy that has moved, and clip it."""
    settings = OmegaConf.merge(alone.ppo, {"temperature": 0.5, "epochs": 1, "minibatches": 1})
    samples = appraise(model, episodes_of(model, 6), lambda episodes, trees, replies: torch.randn(sum(map(len, replies))), 0.0, settings, Group())
    assert update(model, torch.optim.SGD(model.parameters("policy"), lr=0.0), samples, settings, Group())["clipped"] == 0
    other = OmegaConf.merge(settings, {"temperature": 1.0})
    assert update(model, torch.optim.SGD(model.parameters("policy"), lr=0.0), samples, other, Group())["clipped"] > 0


def test_the_archives_well_rated_replies_are_written_on_and_no_others(model, alone):
    """Beside a step that has nothing else to say; and where nobody was rated well, nothing of it is done."""
    good = well_rated(alone)
    assert {row["stars"] for row in good} == {4.5}
    rng, prompt = random.Random(0), good[0]["prompt"]
    rated, other = (leaf(model.tokenizer, prompt, row["completion"][0], 200) for row in (good[0], next(row for _, row in read_jsonl(stage_dir(alone, "prepare") / "sft/train.jsonl") if row["stars"] == 2)))

    def likelihood(ids: list[int], length: int) -> float:
        with torch.no_grad(), model.using("policy"):
            tree = grow([ids])
            return float(model.log_probs([tree], [[tree.leaves[0][-length:]]])[0].sum())

    before = likelihood(*rated), likelihood(*other)
    samples = appraise(model, episodes_of(model), lambda *_: torch.zeros(8), 0.0, alone.ppo, Group())
    for sample in samples:
        sample.advantages = torch.zeros_like(sample.advantages)
    for _ in range(3):
        update(model, torch.optim.AdamW(model.parameters("policy"), lr=3e-3), samples, alone.ppo, Group(), some_of(good, 4, model.tokenizer, 200, rng))
    assert likelihood(*rated) > before[0] + 1
    assert likelihood(*rated) - before[0] > likelihood(*other) - before[1] + 0.5
    assert next(some_of([], 4, model.tokenizer, 200, rng), None) is None


def sample_of(surprise: float) -> Sample:
    return Sample(grow([[1]]), [[0]], torch.zeros(1), torch.zeros(0), torch.zeros(1), torch.zeros(0), surprise, [0.0], 0.0, 0, 1)


@given(st.lists(NUMBERS, min_size=1, max_size=8), st.integers(0, 8))
def test_the_most_surprising_are_those_with_the_reply_that_was_most_better_than_expected(surprises, most):
    numbers = [10 + 3 * k for k in range(len(surprises))]
    chosen = most_surprising(numbers, [sample_of(each) for each in surprises], numbers, most, Group())
    best = dict(zip(numbers, surprises, strict=True))
    assert len(chosen) == len(set(chosen)) == min(most, len(numbers))
    assert all(best[a] >= best[b] for a in chosen for b in set(numbers) - set(chosen))


@pytest.mark.slow
def test_customers_with_whom_something_can_be_learned_come_again_but_not_when_it_is_measured(run, monkeypatch):
    config, plain, asked = run.copy(), ppo.play, []
    config.fingerprint = {"seed": 4}
    monkeypatch.setattr(ppo, "play", lambda *args: asked.append(args[3]) or plain(*args))
    ppo.run(config)
    assert sorted(asked[0]) == list(range(6))
    for before, now in itertools.pairwise(asked[:-1]):
        assert len(set(now) & set(before)) == 3, "half of a step's customers are of the step before"
        assert len(set(now)) == 6
    assert not set(asked[-1]) & {number for each in asked[:-1] for number in each}


@pytest.mark.parametrize("wrong", ["ppo.again=1.0", "ppo.again=-0.1", "ppo.start=kto"])
def test_no_new_customers_or_another_start_is_refused(tmp_path, wrong):
    with pytest.raises(StageError, match="so that new customers come at every step"):
        ppo.run(toy_run(tmp_path, wrong))


def test_the_policy_may_go_on_from_dpo_and_is_held_to_sft(tmp_path):
    config = toy_run(tmp_path, "ppo.start=dpo")
    with pytest.raises(StageError, match=r"ppo\.start=sft to go on from SFT"):
        load_players(config, load_tokenizer(config))
    with stage_output(config, "dpo") as out:
        random_adapter(load_base(config), config, out / "adapter")
    model = load_players(config, load_tokenizer(config))
    own, other = (OneBase(config, load_tokenizer(config)) for _ in range(2))
    own.add("policy", stage_dir(config, "dpo") / "adapter")
    other.add("ref", stage_dir(config, "sft") / "adapter")
    for name, each in (("policy", own), ("ref", other)):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(name), each.parameters(name), strict=True))


def curve_of(config) -> list[dict]:
    return json.loads((stage_dir(config, "ppo") / "curve.json").read_text())


def killed_and_run_again(config, saves: int, monkeypatch) -> None:
    """Stop the stage after so many checkpoints, and let it go on."""
    plain, calls = ppo.save, []

    def save_and_die(*args):
        plain(*args)
        calls.append(1)
        if len(calls) == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(ppo, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        ppo.run(config)
    monkeypatch.setattr(ppo, "save", plain)
    ppo.run(config)


def weights_of(config, stage: str = "ppo") -> dict[str, torch.Tensor]:
    return load_file(stage_dir(config, stage) / "adapter/adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [4, 1])
def test_killed_and_resumed_it_gives_the_same_policy_and_metrics(run, drafts, monkeypatch):
    config = run.copy()
    config.ppo.drafts, config.fingerprint = drafts, {"drafts": drafts}
    ppo.run(config)
    whole, weights = curve_of(config), weights_of(config)
    assert [entry["step"] for entry in whole] == [0, 1, 2, 3]
    assert whole[0]["kl"] == pytest.approx(0, abs=1e-4), "the policy starts as its reference"
    assert (stage_dir(config, "ppo") / "value").is_dir() == ("value_loss" in whole[0]) == (drafts == 1)
    killed_and_run_again(config, 2, monkeypatch)
    assert curve_of(config) == whole
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(config).items())


@pytest.mark.slow
def test_a_policy_that_leaves_the_budget_is_put_back(run):
    config = run.copy()
    config.ppo.kl_budget, config.ppo.learning_rate, config.fingerprint = 0.02, 0.05, {"seed": 1}
    ppo.run(config)
    curve = curve_of(config)
    assert "kl_budget" in curve[-1]["stopped"]
    assert len(curve) < 4
    facts = read_manifest(stage_dir(config, "ppo"))["facts"]
    assert facts["stopped"]
    assert facts["kl"] == curve[-2]["kl"] <= 0.02, "what is reported is what is kept, which was measured within the budget"


@pytest.mark.slow
def test_what_is_put_back_is_averaged_too(run, monkeypatch):
    weights = {}
    for share in (1.0, 0.5):
        config, plain, calls = run.copy(), ppo.measured, []
        config.ppo.average, config.fingerprint = share, {"seed": 10 * share}
        monkeypatch.setattr(ppo, "measured", lambda *args, plain=plain, calls=calls: plain(*args) | ({"kl": math.inf} if calls.append(0) or len(calls) == 3 else {}))
        ppo.run(config)
        monkeypatch.setattr(ppo, "measured", plain)
        weights[share] = weights_of(config)
    start = weights_of(run, "sft")
    assert all(torch.allclose(weights[0.5][name], (start[name] + weights[1.0][name]) / 2, atol=1e-6) for name in start)


def test_a_start_beyond_the_budget_and_processes_with_unlike_shares_are_refused(tmp_path, monkeypatch):
    config = toy_run(tmp_path, "ppo.steps=1", "ppo.episodes=2", "ppo.max_replies=1")
    plain = ppo.measured
    monkeypatch.setattr(ppo, "measured", lambda *args: plain(*args) | {"kl": 4.0})
    with pytest.raises(StageError, match=r"begins 4.00 nats a reply from sft, .*ppo.start=sft"):
        ppo.run(config)
    assert not stage_dir(config, "ppo").exists()
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(StageError, match=r"ppo.episodes=2 are not as many for each of 3 processes"):
        ppo.run(config)


@pytest.mark.slow
def test_a_kl_that_is_no_number_ends_the_run_with_the_last_good_policy(run, monkeypatch):
    config, plain = run.copy(), ppo.measured
    config.fingerprint = {"seed": 2}

    def exploding(*args):
        exploding.calls += 1
        return plain(*args) | ({"kl": float("nan")} if exploding.calls == 3 else {})

    exploding.calls = 0
    monkeypatch.setattr(ppo, "measured", exploding)
    ppo.run(config)
    curve = curve_of(config)
    assert len(curve) == 3
    assert "kl_budget" in curve[-1]["stopped"]
    assert all(torch.isfinite(value).all() for value in weights_of(config).values())


@pytest.mark.slow
def test_a_policy_resumed_beyond_the_budget_is_the_one_from_before_too(run, monkeypatch):
    """Killed after the update that went too far: what is kept is still the policy that was measured within the budget."""
    config = run.copy()
    config.ppo.kl_budget, config.ppo.learning_rate, config.fingerprint = 0.02, 0.05, {"seed": 3}
    ppo.run(config)
    whole, weights = curve_of(config), weights_of(config)
    killed_and_run_again(config, 1, monkeypatch)
    assert len(curve_of(config)) == len(whole)
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(config).items())


def test_below_its_gate_nothing_is_trained_and_the_reason_is_kept(tmp_path):
    config = toy_run(tmp_path)
    write_json(stage_dir(config, "reward") / "gate.json", {"passed": False, "checks": [], "why": "accuracy is 0.510, needed at least 0.7"})
    ppo.run(config)
    refusal = json.loads((stage_dir(config, "ppo") / "refusal.json").read_text())
    assert refusal["reason"] == "accuracy is 0.510, needed at least 0.7"
    assert not (stage_dir(config, "ppo") / "adapter").exists()
    assert read_manifest(stage_dir(config, "ppo"))["facts"]["refused"]


def test_a_reward_model_of_another_base_is_refused(tmp_path):
    config = toy_run(tmp_path)
    other = toy_run(tmp_path / "other", "sft.lora.r=2")
    with pytest.raises(StageError, match="made for another base model"):
        model = OneBase(config, load_tokenizer(config))
        model.add("policy", stage_dir(config, "sft") / "adapter")
        changed = stage_dir(other, "reward") / "members/0"
        text = json.loads((changed / "adapter_config.json").read_text())
        (changed / "adapter_config.json").write_text(json.dumps(text | {"r": 4}))
        model.add("reward_0", changed)


def test_what_was_trained_on_another_base_of_the_same_shape_is_refused(tmp_path):
    """Where the base was trained anew and the reward models were not: they would load, and say nothing."""
    config = toy_run(tmp_path)
    manifest = stage_dir(config, "reward") / "manifest.json"
    made, base = json.loads(manifest.read_text()), read_manifest(stage_dir(config, "pretrain"))
    for inputs, refused in (({"pretrain": outputs_hash(base)}, False), ({"pretrain": "another"}, True)):
        write_json(manifest, made | {"made_from": {"inputs": inputs}})
        with pytest.raises(StageError, match=r"reward was trained on another base model .*stages=\[reward\]") if refused else contextlib.nullcontext():
            load_players(config, load_tokenizer(config))
    config.model.from_scratch, config.model.name = False, str(stage_dir(config, "pretrain") / "model")
    for name, refused in ((config.model.name, False), ("some/other-8b", True)):
        (Path(config.run_dir) / "config").mkdir(exist_ok=True)
        OmegaConf.save({"model": {"name": name, "revision": None}}, Path(config.run_dir) / "config/reward.yaml")
        with pytest.raises(StageError, match="another base model") if refused else contextlib.nullcontext():
            load_players(config, load_tokenizer(config))


def test_without_a_world_it_learns_on_the_archives_prompts(tmp_path):
    config = toy_run(tmp_path, "company=null", "ppo.steps=1", "ppo.episodes=4")
    ppo.run(config)
    assert {entry["replies"] for entry in curve_of(config)} == {1.0}


def test_what_goes_out_is_half_way_between_where_it_began_and_where_it_came_to(tmp_path):
    found = {}
    for average in (1.0, 0.5):
        config = toy_run(tmp_path / str(average), "company=null", "ppo.steps=1", "ppo.episodes=4", f"ppo.average={average}")
        ppo.run(config)
        found[average] = weights_of(config)
    begun = weights_of(config, "sft")
    assert all(torch.allclose(found[0.5][name], (begun[name] + own) / 2, atol=1e-6) for name, own in found[1.0].items())
    assert any(not torch.allclose(begun[name], own, atol=1e-4) for name, own in found[1.0].items())
    with pytest.raises(StageError, match=r"ppo.average=0.0 must be above 0"):
        ppo.run(toy_run(tmp_path / "none", "ppo.average=0.0"))


@pytest.mark.parametrize(("name", "changes"), [
    ("replies have grown", {"reply_tokens": 40}), ("do not end", {"cut_off": 0.5}), ("the clip cuts", {"clipped": 0.6}), ("entropy has fallen", {"entropy": 0.01}),
    ("conversations have grown", {"replies": 9})])
def test_each_alarm_is_raised_once_with_cause_and_next_step(name, changes):
    calm = {"step": 0, "reply_tokens": 10, "cut_off": 0.0, "replies": 4.0, "clipped": 0.1, "entropy": 1.0, "reward": 0.0, "held_out": 0.0}
    seen: set[str] = set()
    assert not alarms([calm, {**calm, "step": 1}], seen)
    (line,) = alarms([calm, {**calm, "step": 2, **changes}], seen)
    assert all(part in line for part in (name, "Likely cause:", "Next:"))
    assert not alarms([calm, {**calm, "step": 3, **changes}], seen)


@pytest.mark.parametrize("steps", [20, load_config([]).ppo.steps])
def test_a_reward_that_rises_without_the_held_out_one_is_said(steps):
    """In a run of the default length too."""
    curve = [{"step": k, "reply_tokens": 9, "cut_off": 0.0, "replies": 4.0, "reward": k / 10, "held_out": -k / 10} for k in range(steps)]
    assert "exploits the ensemble" in alarms(curve, set())[0]
    assert not alarms(curve[:7], set()), "of so few steps nothing is said"


TWO = """
import sys, torch
sys.path.insert(0, {root!r})
from omegaconf import OmegaConf
from tests.test_ppo import episodes_of
from training.group import Group, leave
from training.models import load_tokenizer
from training.alarms import measured
from training.ppo import appraise, load_players, update
config, group = OmegaConf.load({config!r}), Group()
torch.set_num_threads(1)
model = load_players(config, load_tokenizer(config))
episodes = episodes_of(model, 8, config.ppo.drafts > 1)
mine = episodes[group.rank::group.size]
marks = {{id(e): k for k, e in enumerate(episodes)}}
reward = lambda some, trees, replies: torch.tensor([float(marks[id(e)] + t) for e in some for t in range(2)])
optimizer = torch.optim.AdamW(model.parameters("policy") + model.parameters("value"), lr=1e-3)
for _ in range(2):
    samples = appraise(model, mine, reward, 0.1, config.ppo, group)
    entry = measured(samples, lambda trees, replies: torch.zeros(1), group)
    logged = update(model, optimizer, samples, config.ppo, group)
torch.save({{"weights": [p.detach() for p in model.parameters("policy") + model.parameters("value")], "entry": entry, "logged": logged}}, {out!r} + f"/{{group.size}}-{{group.rank}}.pt")
leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [2, 1])
def test_two_processes_do_what_one_does(run, drafts, tmp_path):
    OmegaConf.save(OmegaConf.merge(run, {"ppo": {"drafts": drafts}}), tmp_path / "config.yaml")
    script = tmp_path / "two.py"
    script.write_text(TWO.format(root=str(ROOT), config=str(tmp_path / "config.yaml"), out=str(tmp_path)))
    for command in ([sys.executable, str(script)], [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29611", str(script)]):
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    one, first, second = (torch.load(tmp_path / name, weights_only=False) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for a, b, c in zip(one["weights"], first["weights"], second["weights"], strict=True):
        assert torch.equal(b, c), "both processes hold the same weights"
        assert torch.allclose(a, b, atol=2e-5), "and they are those of one process"
    for name in ("kl", "reward", "reply_tokens"):
        assert one["entry"][name] == pytest.approx(first["entry"][name], abs=1e-4)


def test_the_weights_of_four_copies_are_not_held():
    """An 8B shape on the meta device: one base with its adapters against a policy, a reference, a reward and a value model of their own."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = Qwen3Config(vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    with torch.device("meta"):
        base = Qwen3ForCausalLM(shape).to(torch.bfloat16)
        copies = 4 * sum(p.numel() * p.element_size() for p in base.parameters())
        lora = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear")
        model = get_peft_model(base, lora, adapter_name="policy")
        for name in ("ref", "reward_0", "reward_1", "reward_2", "held_out", "value"):
            model.add_adapter(name, lora)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    assert held / copies <= 0.35, held / copies


def test_whitening_knows_nothing_of_order(model, alone):
    samples = appraise(model, episodes_of(model), lambda *_: torch.arange(8.0), 0.0, alone.ppo, Group())
    whiten(samples, Group(), centred=True)
    again = [s.advantages.clone() for s in samples]
    whiten(samples[::-1], Group(), centred=True)
    assert all(torch.allclose(a, s.advantages, atol=1e-4) for a, s in zip(again, samples, strict=True))


