"""The benchmark on real ratings, on made-up ones: its parts are right and it runs from end to end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.taskmaster import auc, compared, is_test, main, messages_of, read
from data_prep.artifacts import StageError


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_order(rows):
    scores, labels = np.array([float(s) for s, _ in rows]), np.array([label for _, label in rows])
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels] for b in scores[~labels]]
    assert np.isnan(auc(scores, labels)) if not pairs else auc(scores, labels) == pytest.approx(np.mean(pairs))


def test_a_comparison_draws_whole_groups():
    labels, groups = np.array([True, False] * 40), [f"g{k // 4}" for k in range(80)]
    found = compared(labels.astype(float), np.zeros(80), labels, groups)
    assert (found["ours"]["value"], found["n-grams"]["value"], found["difference"]["value"], found["groups"]) == (1.0, 0.5, 0.5, 20)
    assert found["difference"]["low"] == found["difference"]["high"] == 0.5


def test_dialogues_become_chat_messages():
    made = messages_of([{"role": "agent", "text": "Hi"}, {"role": "user", "text": "tea"}, {"role": "agent", "api": {"find": {"q": "tea"}}}, {"role": "api", "response": {"find": ["x" * 999]}}])
    assert [m["role"] for m in made] == ["assistant", "user", "assistant", "tool"]
    assert json.loads(made[2]["tool_calls"][0]["function"]["arguments"]) == {"q": "tea"}
    assert len(made[3]["content"]) == 300


def written(folder: Path) -> Path:
    for name in ("TM-3-2020", "TM-4-2024"):
        rows = []
        for number in range(60):
            context = [{"role": "agent", "text": "Hello, what can I do?"}, {"role": "user", "text": f"I want {'tea' if number % 2 else 'cake'} number {number} for the friends who come to see us on this sunny day"},
                       {"role": "agent", "text": "Anything else?"}, {"role": "user", "text": "No, thanks."}]
            for reply, reward in (({"role": "agent", "text": "Yes, gladly."}, 1.0), ({"role": "agent", "text": "What?"}, 0.0), ({"role": "agent", "api": {"order": {"what": "tea"}}}, 1.0), ({"role": "agent", "api": {"stop": {}}}, 0.0)):
                context = context if number else []          # some dialogues begin with the agent
                rows.append({"conversation_id": f"d{number}", "context": json.dumps(context), "generation": json.dumps(reply), "reward": reward})
        (folder / name / "reward").mkdir(parents=True)
        (folder / name / "reward/reward_00.json").write_text(json.dumps(rows))
    return folder


def test_dialogues_that_begin_alike_are_in_one_part(tmp_path):
    rows = read(written(tmp_path))
    assert len({(row["group"], is_test(row)) for row in rows}) == len({row["group"] for row in rows})
    assert 0.1 < sum(map(is_test, rows)) / len(rows) < 0.5
    with pytest.raises(StageError, match="give the folder that holds Taskmaster"):
        read(tmp_path / "nothing")


@pytest.mark.slow
def test_it_runs_from_end_to_end(tmp_path):
    results = main([f"data={written(tmp_path / 'data')}", f"run_dir={tmp_path / 'run'}", "pretrain.drills=8", "pretrain.conversations=16", "pretrain.trainer.max_steps=2", "sft.trainer.max_steps=2",
                    "reward.members=2", "reward.trainer.max_steps=3", "model.vocab_size=500"])
    assert list(results["rows"]) == ["TM-3, text", "TM-3, api", "TM-4, text", "TM-4, api"]
    assert all(found["n"] > 0 and found["difference"]["low"] <= found["difference"]["value"] <= found["difference"]["high"] for found in results["rows"].values())


def test_the_public_data_is_read_where_it_is():
    folder = os.environ.get("SUPPORTLOOP_DATA")
    if not folder or not (Path(folder) / "taskmaster").is_dir():
        pytest.skip("set SUPPORTLOOP_DATA to a folder that holds taskmaster/ to read the real judgements")
    assert len(read(Path(folder) / "taskmaster")) == 6895
