"""The benchmarks of training at toy size: each way runs, counts what it says it counts, and the pages hold what was measured."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from statistics import pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from benchmarks import attention, gain, one_reply, ppo, seeds, sft_dpo, share
from benchmarks.shapes import random_base, shown, sizes
from data_prep.artifacts import StageError, stage_dir, stage_output
from data_prep.company.pack import load_pack
from data_prep.company.talk import draw_talk
from data_prep.conversation import read_jsonl, write_jsonl
from data_prep.statistics import drawn_groups
from tests.toys import random_adapter, toy_run
from training.adapters import OneBase
from training.models import load_base, load_tokenizer
from training.rollouts import Episode, Turn


def asked(number: int) -> list[dict]:
    return [{"role": "user", "content": f"where is order {number}?"}]


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = toy_run(tmp_path_factory.mktemp("bench"), "trainer.warmup_steps=1", "sft.trainer.max_steps=2", "ppo.start=dpo", "ppo.steps=1", "ppo.episodes=4", "ppo.max_replies=2", "evaluate.max_replies=3")
    rows = [{"conversation_id": f"c-{k}", "stars": float(k % 5 + 1), "prompt": asked(k) + turn * (said("One moment.") + asked(k)), "completion": said("It arrives soon." if turn else "One moment.")} for k in range(40) for turn in range(2)]
    with stage_output(config, "prepare") as out:
        write_jsonl(out / "sft/train.jsonl", rows)
        write_jsonl(out / "sft/validation.jsonl", rows[:4])
        write_jsonl(out / "preferences/train.jsonl", [{"conversation_id": f"c-{k}", "prompt": asked(k), "chosen": said("It arrives soon."), "rejected": said("Pay now."), "margin": 1.0} for k in range(48)])
    for stage in ("dpo", "ppo"):
        with stage_output(config, stage) as out:
            random_adapter(load_base(config), config, out / "adapter")
        path = Path(config.run_dir) / f"config/{stage}.yaml"
        path.parent.mkdir(exist_ok=True)
        OmegaConf.save(config, path)
    return config


@pytest.mark.slow
def test_sft_and_dpo_beside_plain_trl(run, tmp_path):
    """Every way once; the archive's replies are learned by all of them, so a row a conversation holds what its rows a reply hold."""
    results = sft_dpo.main([f"run_dir={run.run_dir}", "steps=1", "repeats=1", "batch=4", f"work={tmp_path}", f"out={tmp_path}/page.md"])
    assert {what: list(ways) for what, ways in results.items()} == sft_dpo.WAYS
    assert all(0 < each["supervised"] < each["real"] <= each["tokens"] for each in results["sft"].values())
    assert results["sft"]["TRL, a row a reply"]["rows"] == 2 * results["sft"]["TRL, a row a conversation"]["rows"]
    by_conversation, ours = (results["sft"][way] for way in ("TRL, a row a conversation", "ours, batches of like length"))
    assert ours["supervised"] == by_conversation["supervised"], "the same labels, counted two ways"
    page = (tmp_path / "page.md").read_text()
    assert all(way in page for ways in sft_dpo.WAYS.values() for way in ways)
    assert str(tmp_path) not in page
    assert run.run_dir not in page


def test_random_weights_take_the_place_of_the_runs(run, tmp_path):
    folder, overrides = sft_dpo.on_random_weights(run, "toy", "cpu", tmp_path, [])
    spec = {"what": "dpo", "way": "ours", "run_dir": str(folder), "overrides": overrides, "device": "cpu", "steps": 1, "batch": 4, "rows": 200, "folder": str(tmp_path / "one")}
    found = sft_dpo.one(spec)
    assert found["rows"] == 48
    assert found["peak"] > 1e8


def test_a_token_is_multiplied_with_every_weight_but_the_table(run):
    base = load_base(run)
    assert sum(sizes(base)) == sum(p.numel() for p in base.parameters()), "the head is the table, and is counted once"


def test_several_seeds_are_told_with_their_spread():
    def outcomes(successes: int) -> list[dict]:
        return [{"success": k < successes, "violations": [] if k < 90 else ["refund"], "unasked": []} for k in range(100)]

    lines = seeds.table([(seed, {"sft": outcomes(60), "dpo": outcomes(70 + seed), "ppo": outcomes(80)}) for seed in (0, 1, 2)])
    told = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines[2:]}
    assert told["success, sft"][-1] == "60.0% (60.0% to 60.0%) |"
    dpo, gains = told["success, dpo less sft, points"][-1], [1.0] * 10 + [2 / 3, 1 / 3] + [0.0] * 88
    assert dpo.startswith("+11.0 (+10.0 to +12.0; customers [")
    assert dpo.endswith(", runs [+8.5, +13.5]) |"), "Student's t of three: 4.30 * 1 / sqrt(3)"
    low, high = (float(end) for end in dpo.split("customers [")[1].split("]")[0].split(", "))
    assert (low, high) == pytest.approx([11 + sign * 1.96 * 100 * pstdev(gains) / 10 for sign in (-1, 1)], abs=0.7), "of 100 customers, ten won in every run"
    assert told["success, ppo less sft, points"][0].startswith("+20.0 [+")
    assert told["violations, ppo less dpo, points"] == ["+0.0 [+0.0, +0.0]"] * 3 + ["+0.0 (+0.0 to +0.0; customers [+0.0, +0.0], runs [+0.0, +0.0]) |"]
    with pytest.raises(StageError, match="give 2 to"):
        seeds.main(["runs=runs/dev"])


def test_a_page_tells_of_a_path_its_last_part_alone():
    assert shown("benchmarks.gain", ["run_dir=/somewhere/runs/dev", "n=4", "work=/x", "out=benchmarks/gain.md"]) == "`python -m benchmarks.gain run_dir=dev n=4 out=benchmarks/gain.md`"


@pytest.mark.slow
def test_the_truth_of_a_draft_is_what_becomes_of_the_conversation_where_it_is_said(run):
    """Replies of a scripted agent that does right, and beside each a draft that hands the customer over; from there on nothing is said but goodbye."""
    tokenizer, pack = load_tokenizer(run), load_pack(run.company)
    model = OneBase(run, tokenizer)
    truth = gain.Truth(run, model)
    goodbye = tokenizer("?", add_special_tokens=False)["input_ids"]
    truth.generate = lambda prompts, seed: [Turn(prompt, goodbye) for prompt in prompts]

    def ids(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    handoff = '<tool_call>{"name": "transfer_to_human", "arguments": {"reason": "human", "summary": "Customer asks for a person."}}</tool_call>'
    number = next(number for number in range(200) if draw_talk(pack, number, "seen", run.seed).world.scenario["name"] == "human")
    talk = draw_talk(pack, number, "seen", run.seed)
    turns = [Turn([1], ids("?")), Turn([1], ids(handoff), is_draft=True)]
    talk.take(truth.read(turns[0].reply))
    turns += [Turn([1, 2], ids(handoff)), Turn([1, 2], ids("?"), is_draft=True)]
    talk.take(truth.read(turns[2].reply))
    episode = Episode(turns, talk)
    assert [len(began.messages) for began in truth.began(episode)][2] == len(talk.messages)
    assert truth.began(episode)[2].messages == talk.messages, "the world goes the same way again"
    assert talk.world.succeeded()
    assert truth([episode], [], []).tolist() == [-1.0, 1.0, 1.0, -1.0]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_whole_groups_are_drawn(groups):
    for chosen in drawn_groups(groups, 5):
        drawn = Counter(groups[place] for place in chosen)
        assert all(count % groups.count(group) == 0 for group, count in drawn.items())


@pytest.mark.parametrize("drafts", ppo.REPLIES)
def test_our_side_of_ppo_moves_the_policy_and_times_its_steps(tmp_path, drafts):
    base = random_base("toy", tmp_path / "toy", "cpu")
    spec = {"base": str(base), "run_dir": None, "device": "cpu", "seed": 0, "threads": 1, "members": 3, "epochs": 2, "minibatches": 1, "batch_tokens": 64, "reply_tokens": 6, "learning_rate": 1e-2, "folder": str(tmp_path), "drafts": drafts,
            "prompts": [[[100 + k, 101, 102] for k in range(4)]] * 2}
    found = ppo.ours(spec)
    assert len(found["step"]) == len(found["rollout"]) == 2
    assert all(0 < a < b for a, b in zip(found["rollout"], found["step"], strict=True))
    assert (tmp_path / "policy/adapter_model.safetensors").read_bytes() != (base / "adapters/speaks/adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_both_sides_of_ppo(tmp_path, monkeypatch):
    python = os.environ.get("SUPPORTLOOP_TRL_PYTHON")
    if not python:
        pytest.skip("set SUPPORTLOOP_TRL_PYTHON to a Python with trl==1.12.0 (make bench-train makes one) to run its side")
    monkeypatch.setattr(ppo, "PROMPT", 8)
    monkeypatch.setattr(ppo, "REPLY", 6)
    results = ppo.main([f"trl_python={python}", "shape=toy", "steps=1", f"work={tmp_path}", f"out={tmp_path}/page.md"])
    assert set(results["timed"]) == set(ppo.REPLIES)
    assert all(each["peak"] > 1e8 and each["rollout"] < each["step"] for sides in results["timed"].values() for each in sides.values())


def test_an_archive_is_cut_to_one_reply_a_prompt(run, tmp_path):
    config = run.copy()
    config.run_dir, config.fingerprint = str(tmp_path / "cut"), {"seed": 0}
    source = tmp_path / "anonymise"
    write_jsonl(source / "conversations.jsonl", [{"id": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", "drafts": [{"id": "d1", "content": "no"}]}]}])
    place = {"conversation_id": "a", "message_index": 1, "rater_id": "q"}
    write_jsonl(source / "feedback.jsonl", [{**place, "kind": "rating", "rating": 4}, {**place, "kind": "rating", "rating": 1, "draft_id": "d1"}, {**place, "kind": "edit", "edit": "Yes."}])
    assert one_reply.cut(config, source) == {"feedback": 3, "kept": 1, "ratings": 1}
    (row,) = [row for _, row in read_jsonl(stage_dir(config, "anonymise") / "conversations.jsonl")]
    assert row["messages"][1] == {"role": "assistant", "content": "yes"}


@pytest.mark.slow
def test_every_way_of_using_ratings_meets_the_same_customers(run, tmp_path):
    figures = gain.main([f"run_dir={run.run_dir}", "conversations=4", "n=2", f"out={tmp_path}/gain.md"])
    assert list(figures) == list(gain.NAMES)
    assert all(each["success"]["n"] == 4 for each in figures.values())
    (own,) = [folder for folder in (Path(run.run_dir) / "gain").iterdir() if folder.is_dir()]
    made = [own / name for name in ("sft_top/sft/adapter", "ppo_alone/ppo/adapter", "ceiling/adapter")]
    learned = [(folder / "adapter_model.safetensors").stat().st_mtime_ns for folder in made]
    gain.main([f"run_dir={run.run_dir}", "conversations=4", "n=2", f"out={tmp_path}/gain.md"])
    assert learned == [(folder / "adapter_model.safetensors").stat().st_mtime_ns for folder in made], "what is there is not trained again"
    assert "PPO on the true reward" in (tmp_path / "gain.md").read_text()


def test_the_share_closed_is_of_the_way_from_sft_to_the_ceiling():
    def outcomes(successes: int) -> list[dict]:
        return [{"success": k < successes, "violations": [], "unasked": [], "handed_off": True, "wants_human": True, "needless_handoff": False, "most_repeated": 1, "ended": "handed_off"} for k in range(100)]

    lines, figures = gain.table({"sft": outcomes(50), "dpo": outcomes(60), "ceiling": outcomes(90)}, 4)
    assert figures["dpo"]["closed"]["value"] == pytest.approx(0.25)
    assert figures["dpo"]["closed"]["low"] < 0.25 < figures["dpo"]["closed"]["high"]
    assert figures["dpo"]["over_sft"]["value"] == pytest.approx(0.1)
    assert any("| 25% [" in line for line in lines)
    assert json.dumps(figures)


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8), st.floats(0.1, 0.9))
def test_good_agents_get_the_share_that_is_asked_for(agents, good):
    made = [{"id": str(k), "share": weight, "habits": {"loops": 0.5} if bad else {}} for k, (weight, bad) in enumerate(agents)]
    if len({bad for _, bad in agents}) < 2:
        with pytest.raises(StageError, match=r"agents\.yaml"):
            share.with_share(made, good)
        return
    shared = share.with_share(made, good)
    assert sum(a["share"] for a in shared) == pytest.approx(1)
    assert sum(a["share"] for a in shared if not a["habits"]) == pytest.approx(good)
    for a, b in zip(made, shared, strict=True):
        same = [(x, y) for x, y in zip(made, shared, strict=True) if bool(x["habits"]) == bool(a["habits"])]
        assert all(a["share"] * y["share"] == pytest.approx(x["share"] * b["share"]) for x, y in same), "among themselves as before"


def test_the_plot_of_shares_draws_every_point():
    points = [{"share": s, "dpo_gain": [0.1, 0.05, 0.15], "ppo_gain": [0.0, -0.05, 0.05]} for s in (0.3, 0.6)] + [{"share": 0.9, "dpo_gain": [0.0, -0.1, 0.1]}]
    drawn = share.picture(points)
    assert drawn.startswith("<svg")
    assert "gain over SFT" in drawn or "PPO" in drawn


@pytest.mark.slow
def test_a_step_costs_more_or_less_by_how_its_tokens_stand_and_learns_the_same(tmp_path):
    results = attention.main(["shape=toy", "device=cpu", "tokens=120", "length=20", f"out={tmp_path / 'page.md'}"])
    assert len(results) == 12
    assert max(each["loss"] for each in results.values()) == pytest.approx(min(each["loss"] for each in results.values()), rel=1e-4)
    assert all(name.split(",")[0] in (tmp_path / "page.md").read_text() for name in results)
