from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.artifacts import StageError, read_manifest, stage_output
from data_prep.conversation import Conversation, read_jsonl, write_jsonl
from data_prep.prepare import duplicates, prompts, run, split_of
from data_prep.statistics import paired_difference, wilson


def talk(identity: str, text: str = "where is my order please tell me now", **more) -> Conversation:
    messages = more.pop("messages", None) or [{"role": "user", "content": text}, {"role": "assistant", "content": f"it is on the way {text}"}]
    return Conversation.from_record({"id": identity, "messages": messages, **more})


def test_exact_and_near_duplicates_go_and_different_ones_stay():
    long = "I ordered a lamp last week and it did not arrive yet so I would like to know where it is because it is a present"
    made = duplicates([talk("a", long), talk("b", long), talk("c", long + " thanks"), talk("d", "something else entirely about a refund I want")], 0.6)
    assert made == {"b": "exact duplicate", "c": "near duplicate"}


def test_no_customer_is_in_two_of_training_and_the_rest():
    conversations = [talk(f"c-{i}", customer={"id": f"u-{i % 40}"}, metadata={"received": i % 9 / 9}) for i in range(400)]
    splits = {c.id: split_of(c, 0.3, 2 / 9) for c in conversations}
    customers = {name: {c.customer["id"] for c in conversations if splits[c.id] == name} for name in ("train", "validation", "test")}
    assert all(customers.values())
    assert not customers["train"] & (customers["validation"] | customers["test"])
    assert all(c.metadata["received"] < 7 / 9 for c in conversations if splits[c.id] in ("train", "validation"))
    assert all(c.metadata["received"] >= 7 / 9 for c in conversations if splits[c.id] == "test")


def test_each_reply_becomes_a_row_and_what_follows_no_customer_does_not():
    messages = [{"role": "assistant", "content": "welcome"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
                {"role": "assistant", "content": "how can I help?", "drafts": [{"id": "d", "content": "what?"}]}]
    rows = list(prompts(talk("a", messages=messages)))
    assert [(i, m["content"]) for i, _, m in rows] == [(2, "hello"), (3, "how can I help?")]
    assert all("drafts" not in m for _, p, m in rows for m in [*p, m]), "a draft is never shown to the model"


@pytest.fixture
def anonymised(config):
    def write(records: list[dict], feedback: list[dict] = ()):
        with stage_output(config, "anonymise") as out:
            write_jsonl(out / "conversations.jsonl", records)
            write_jsonl(out / "feedback.jsonl", feedback)
        return config

    return write


def test_the_stage_counts_every_conversation_it_drops(anonymised):
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "omicron", "pi", "rho", "sigma", "tau"]
    records = [talk(f"c-{i}", " ".join(words[(i + k * (i % 7 + 1)) % 19] for k in range(9)) + f" {i}", customer={"id": f"u-{i}"},
                    started_at=f"2026-01-{1 + i % 28:02d}T00:00:00Z").to_record() for i in range(120)]
    config = anonymised([*records, {**records[0], "id": "again"}])
    run(config)
    folder = config.run_dir + "/prepare"
    report = json.loads(Path(folder, "report.json").read_text())
    assert sum(report["conversations"].values()) + sum(report["dropped"].values()) == 121
    assert report["dropped"]["exact duplicate"] >= 1
    rows = [row for split in ("train", "validation", "test") for _, row in read_jsonl(f"{folder}/sft/{split}.jsonl")]
    assert len(rows) == sum(report["conversations"].values()) + report["canaries"]["planted"]
    assert all(row["customer"] for row in rows)


@pytest.mark.parametrize(("count", "repeats"), [(0, 1), (3, 1), (2, 4)])
def test_canaries_are_planted_as_often_as_asked_and_in_training_alone(anonymised, count, repeats):
    records = [talk(f"c-{i}", f"question number {i} about my order", locale=("en-GB", "fi-FI")[i % 2], customer={"id": f"u-{i}"}).to_record() for i in range(40)]
    config = anonymised(records)
    config.prepare.canaries, config.prepare.canary_repeats = count, repeats
    run(config)
    folder = Path(config.run_dir, "prepare")
    canaries = [canary for _, canary in read_jsonl(folder / "canaries.jsonl")]
    assert len(canaries) == 2 * count
    assert json.loads((folder / "report.json").read_text())["canaries"] == {"planted": 2 * count, "repeats": repeats}
    holding = {str(path.relative_to(folder)): [line for line in path.read_text().splitlines() if "canary-" in line] for path in folder.rglob("*/*.jsonl")}
    assert {path: len(lines) for path, lines in holding.items() if lines} == ({"sft/train.jsonl": 2 * count * repeats} if count else {})
    for canary in canaries:
        assert sum(canary["secret"] in json.loads(line)["completion"][0]["content"] for line in holding["sft/train.jsonl"]) == repeats
        assert canary["locale"] in ("en-GB", "fi-FI")


def test_nothing_left_for_training_is_said(anonymised):
    config = anonymised([talk("a", metadata={"received": 1.0}).to_record()])
    with pytest.raises(StageError, match=r"no conversation is left for training"):
        run(config)


def test_a_missing_input_names_the_stage(config):
    with pytest.raises(StageError, match=r"run 'stages=\[anonymise\]' first"):
        run(config)


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilson_holds_the_share_and_narrows_with_n(hits, n):
    hits = min(hits, n)
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    wider = wilson(hits, n)[1] - wilson(hits, n)[0]
    assert wilson(hits * 10, n * 10)[1] - wilson(hits * 10, n * 10)[0] < wider


def test_wilson_agrees_with_the_published_example():
    low, high = wilson(81, 263)      # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_a_paired_difference_uses_the_pairing():
    a, b = [1, 1, 0, 1] * 50, [0, 1, 0, 1] * 50
    value, low, high = paired_difference(a, b)
    assert value == 0.25
    assert 0.15 < low < 0.25 < high < 0.35


def test_customers_data_is_refused_unreviewed_and_a_waiver_is_written_down(anonymised):
    config = anonymised([talk(f"c-{i}", f"my parcel {i} has not come and I want to know where it is {i * 7}").to_record() for i in range(20)])
    config.data.format = "jsonl"
    with pytest.raises(StageError, match=r"reviewed by two people.*python -m data_prep.review .*/run reviewer=NAME"):
        run(config)
    config.anonymise.signoff = "waived"
    run(config)
    manifest = read_manifest(config.run_dir + "/prepare")
    assert manifest["facts"]["signoff"] == {"state": "waived"}
    assert "signoff" not in Path(config.run_dir, "prepare", "report.json").read_text(), "or a review would train everything again"
