from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.artifacts import StageError, read_manifest, stage_output
from data_prep.conversation import Conversation, Feedback, read_jsonl, write_jsonl
from data_prep.prepare import duplicates, pairs, prompts, run, severities, split_of, unpaired
from data_prep.statistics import paired_difference, wilson


def talk(identity: str, text: str = "where is my order please tell me now", **more) -> Conversation:
    messages = more.pop("messages", None) or [{"role": "user", "content": text}, {"role": "assistant", "content": f"it is on the way {text}"}]
    return Conversation.from_record({"id": identity, "messages": messages, **more})


def test_exact_and_near_duplicates_go_and_different_ones_stay():
    long = "I ordered a lamp last week and it did not arrive yet so I would like to know where it is because it is a present"
    made = duplicates([talk("a", long), talk("b", long), talk("c", long + " thanks"), talk("d", "something else entirely about a refund I want")], 0.6)
    assert made == {"b": "exact duplicate", "c": "near duplicate"}


def test_no_customer_is_in_two_of_training_and_the_rest():
    conversations = [talk(f"c-{i}", customer={"id": f"u-{i % 40}"}, started_at=f"2026-0{1 + i % 9}-01T00:00:00Z") for i in range(400)]
    splits = {c.id: split_of(c, 0.3, "2026-08-01") for c in conversations}
    customers = {name: {c.customer["id"] for c in conversations if splits[c.id] == name} for name in ("train", "validation", "test")}
    assert all(customers.values())
    assert not customers["train"] & (customers["validation"] | customers["test"])
    assert all(c.started_at < "2026-08-01" for c in conversations if splits[c.id] in ("train", "validation"))
    assert all(c.started_at >= "2026-08-01" for c in conversations if splits[c.id] == "test")


def test_each_reply_becomes_a_row_and_what_follows_no_customer_does_not():
    messages = [{"role": "assistant", "content": "welcome"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
                {"role": "assistant", "content": "how can I help?", "drafts": [{"id": "d", "content": "what?"}]}]
    rows = list(prompts(talk("a", messages=messages)))
    assert [(i, m["content"]) for i, _, m in rows] == [(2, "hello"), (3, "how can I help?")]
    assert all("drafts" not in m for _, p, m in rows for m in [*p, m]), "a draft is never shown to the model"


MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good", "drafts": [{"id": "d1", "content": "bad"}]}]


def rating(value: int, rater: str = "r", draft: str | None = None) -> Feedback:
    return Feedback("a", "rating", rater, 1, draft, value)


def test_pairs_compare_two_replies_to_one_prompt():
    made = list(pairs(talk("a", messages=MESSAGES), [rating(5), rating(2, draft="d1")], {}, 1.0))
    assert [(m["chosen"][0]["content"], m["rejected"][0]["content"], m["margin"]) for m in made] == [("good", "bad", 3.0)]
    assert not list(pairs(talk("a", messages=MESSAGES), [rating(5), rating(4, draft="d1")], {}, 2.0)), "too small a gap is no preference"
    assert not list(pairs(talk("a", messages=MESSAGES), [rating(5)], {}, 1.0)), "one rating is no pair"


def test_a_severe_rater_does_not_turn_a_pair_around():
    notes = [rating(3, "severe"), rating(4, "kind", "d1")]
    assert next(pairs(talk("a", messages=MESSAGES), notes, {}, 0.5))["chosen"][0]["content"] == "bad"
    made = next(pairs(talk("a", messages=MESSAGES), notes, {"severe": -1.5, "kind": 1.0}, 0.5))
    assert made["chosen"][0]["content"] == "good"


def test_severity_is_learned_and_shrunk_by_count():
    ratings = [rating(2, "severe")] * 60 + [rating(4, "kind")] * 60 + [rating(1, "rare")]
    learned = severities(ratings)
    assert learned["severe"] < -0.7
    assert learned["kind"] > 0.7
    assert abs(learned["rare"]) < 0.3


def test_an_edit_is_preferred_over_what_it_mends():
    edit = Feedback("a", "edit", "r", 1, edit="better")
    made = list(pairs(talk("a", messages=MESSAGES), [edit], {}, 1.0))
    assert [(m["chosen"][0]["content"], m["rejected"][0]["content"], m["source"]) for m in made] == [("better", "good", "edit")]


def test_a_thumb_on_the_conversation_goes_to_the_last_reply():
    made = list(unpaired(talk("a", messages=MESSAGES), [Feedback("a", "thumb", "customer", thumb="down"), rating(4), rating(1, draft="d1")]))
    assert [(m["message_index"], m.get("label"), m.get("rating")) for m in made] == [(1, False, None), (1, None, 4)]


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
    assert len(rows) == sum(report["conversations"].values())


def test_nothing_left_for_training_is_said(anonymised):
    config = anonymised([talk("a", started_at="2026-01-01T00:00:00Z").to_record()])
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
