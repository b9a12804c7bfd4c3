"""Raters' severity is found and taken out; pairs, edits and single judgements say what was meant."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from statistics import mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.company.generate import archive as archive_of
from data_prep.company.pack import load_pack
from data_prep.conversation import Conversation, Feedback
from data_prep.prepare import prompts
from data_prep.ratings import Effects, astray, cost, drafts_of, edited, fit_effects, pairs, raters_report, shrunk, unpaired
from data_prep.statistics import drawn_groups

NOBODY = Effects({}, {})
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good", "drafts": [{"id": "d1", "content": "bad"}]}]


def talk(messages: list[dict] = MESSAGES, **more) -> Conversation:
    return Conversation.from_record({"id": "a", "messages": messages, **more})


def rating(value: int, rater: str = "r", draft: str | None = None, index: int = 1) -> Feedback:
    return Feedback("a", "rating", rater, index, draft, value)


def pairs_of(notes: list[Feedback], effects: Effects = NOBODY, min_gap: float = 0.75, conversation: Conversation | None = None) -> list[dict]:
    conversation = conversation or talk()
    return list(pairs(conversation, prompts(conversation), notes, effects, min_gap))


def test_pairs_compare_two_replies_to_one_prompt():
    made = pairs_of([rating(5, "x"), rating(2, "y", draft="d1")], min_gap=1.0)
    assert [(m["chosen"][0]["content"], m["rejected"][0]["content"], m["margin"], m["raters"]) for m in made] == [("good", "bad", 3.0, [["x"], ["y"]])]
    assert not pairs_of([rating(5), rating(4, draft="d1")], min_gap=2.0), "too small a gap is no preference"
    assert not pairs_of([rating(5)]), "one rating is no pair"


def test_several_drafts_make_every_pair_that_is_far_enough_apart():
    three = talk([MESSAGES[0], {"role": "assistant", "content": "good", "drafts": [{"id": "d1", "content": "fair"}, {"id": "d2", "content": "bad"}]}])
    made = pairs_of([rating(5), rating(3, draft="d1"), rating(1, draft="d2")], conversation=three)
    assert {(m["chosen"][0]["content"], m["rejected"][0]["content"]) for m in made} == {("good", "fair"), ("good", "bad"), ("fair", "bad")}


def test_a_severe_rater_does_not_turn_a_pair_around():
    notes = [rating(3, "severe"), rating(4, "kind", "d1")]
    assert pairs_of(notes, min_gap=0.5)[0]["chosen"][0]["content"] == "bad"
    assert pairs_of(notes, Effects({"severe": -1.5, "kind": 1.0}, {}))[0]["chosen"][0]["content"] == "good"


def test_a_customer_is_no_rater_of_replies():
    assert not pairs_of([rating(5, "customer"), rating(1, "r", "d1")])


def archive(severity: dict[str, float], counts: dict[str, int], tickets: dict[str, float], seed: int) -> list[tuple[Feedback, str]]:
    rng = random.Random(seed)
    rated = []
    for rater, count in counts.items():
        for _ in range(count):
            topic = rng.choice(list(tickets))
            stars = 3 + severity[rater] + tickets[topic] + rng.gauss(0, 0.8)
            rated.append((Feedback("a", "rating", rater, 1, None, min(5, max(1, round(stars)))), topic))
    return rated


@given(st.integers(0, 1000))
def test_severity_and_ticket_are_told_apart(seed):
    true = {"mild": 0.6, "strict": -0.7, "plain": 0.1}
    effects = fit_effects(archive(true, dict.fromkeys(true, 400), {"easy": 0.5, "hard": -0.5}, seed))
    assert all(abs(effects.severity[rater] - value) < 0.25 for rater, value in true.items())
    assert effects.ticket["easy"] - effects.ticket["hard"] == pytest.approx(1.0, abs=0.25)


def test_shrinking_beats_plain_means_for_raters_of_few_ratings():
    """Over many raters with four ratings each, the shrunk estimates lie nearer to the truth than the means do."""
    shrunken, plain = [], []
    for seed in range(20):
        rng = random.Random(seed)
        true = {f"r{k}": rng.gauss(0, 0.3) for k in range(60)}
        rated = archive(true, dict.fromkeys(true, 4), {"one": 0.0}, seed)
        found, overall = fit_effects(rated).severity, mean(note.rating for note, _ in rated)
        shrunken += [(found[r] - true[r]) ** 2 for r in true]
        plain += [(mean(note.rating for note, _ in rated if note.rater_id == r) - overall - true[r]) ** 2 for r in true]
    assert mean(shrunken) < 0.8 * mean(plain)


def test_one_rater_or_equal_ratings_need_no_correction():
    assert fit_effects([(rating(2), ""), (rating(5), "")]).severity == {"r": 0.0}
    assert fit_effects([(rating(3, who), "") for who in "ab" * 9]).severity == {"a": 0.0, "b": 0.0}
    assert fit_effects([]) == NOBODY
    assert shrunk({"a": [1.0], "b": [2.0]}) == {"a": 0.0, "b": 0.0}, "nothing is known of how far one rater's ratings lie apart"


def test_an_edit_is_a_target_a_pair_and_a_cost():
    sent = {"role": "assistant", "content": "I cannot do that for you"}
    edit = Feedback("a", "edit", "r", 1, edit="I can do that for you today")
    assert [message["content"] for message in edited(sent, [edit])] == [edit.edit]
    assert cost(sent["content"], sent["content"]) == 0
    assert cost("a b", "c d") == 1
    made = pairs_of([edit], conversation=talk([MESSAGES[0], sent]))
    assert [(m["chosen"][0]["content"], m["rejected"][0]["content"], m["source"]) for m in made] == [(edit.edit, sent["content"], "edit")]
    assert 0 < made[0]["margin"] < 3.0


def test_an_edit_keeps_the_tool_calls_of_what_it_mends():
    call = [{"id": "1", "type": "function", "function": {"name": "transfer_to_human", "arguments": "{}"}}]
    made = edited({"role": "assistant", "content": "no", "tool_calls": call}, [Feedback("a", "edit", "r", 1, edit="yes")])
    assert made == [{"role": "assistant", "content": "yes", "tool_calls": call}]


def test_judgements_of_customers_and_agents_are_kept_apart():
    notes = [Feedback("a", "thumb", "customer", thumb="down"), rating(4, "strict"), rating(1, draft="d1"), rating(3, draft="gone")]
    conversation = talk(outcome={"intent": "refund"})
    made = list(unpaired(conversation, prompts(conversation), notes, Effects({"strict": -0.5}, {"refund": 0.2})))
    assert [(m["by"], m.get("label"), m.get("rating"), m.get("offset"), m["completion"][0]["content"]) for m in made] == [
        ("customer", False, None, None, "good"), ("agent", None, 4, -0.3, "good"), ("agent", None, 1, 0.2, "bad")]


def test_the_report_shows_agreement_before_and_after():
    notes = [rating(stars, rater, index=index) for index in range(50) for rater, stars in (("mild", 4), ("strict", 2))]
    report = raters_report(notes, Effects({"mild": 0.9, "strict": -0.9}, {}))
    assert report["mild"] == {"ratings": 50, "mean": 4, "spread": 0.0, "severity": 0.9, "shared": 50, "apart": 2, "apart_corrected": pytest.approx(0.2)}


def test_of_replies_rated_by_different_people_the_better_one_is_found_more_often_corrected():
    """On the sample archive, whose truth is known: the reply with more stars is the truly better one, a tie is half right; interval over conversations drawn anew."""
    notes, quality = [], {}
    for conversation, feedback, truth in archive_of(load_pack("data_prep/company/sample"), 2500, 0, drafts=1.0):
        notes += [(Feedback(conversation["id"], "rating", n["rater_id"], n["message_index"], n.get("draft_id"), n["rating"]), conversation["outcome"]["intent"]) for n in feedback if n["kind"] == "rating"]
        quality |= {(conversation["id"], fact["message_index"], fact.get("draft_id")): fact["quality"] for fact in truth}
    effects, by_prompt = fit_effects(notes), defaultdict(list)
    for note, _ in notes:
        by_prompt[note.conversation_id, note.message_index].append(note)
    right, groups = [], []
    for (conversation, index), mine in by_prompt.items():
        for one, other in itertools.combinations(mine, 2):
            true = quality[conversation, index, one.draft_id] - quality[conversation, index, other.draft_id]
            if one.rater_id != other.rater_id and true:
                gaps = effects.corrected(one) - effects.corrected(other), one.rating - other.rating
                right.append([0.5 if gap == 0 else float((gap > 0) == (true > 0)) for gap in gaps])
                groups.append(conversation)
    right = np.array(right)
    low, high = np.quantile([(right[drawn, 0] - right[drawn, 1]).mean() for drawn in drawn_groups(groups)], [0.025, 0.975])
    corrected, plain = right.mean(0)
    print(f"of {len(right)} pairs {corrected:.3f} right corrected, {plain:.3f} as given: {corrected - plain:+.3f} [{low:+.3f}, {high:+.3f}]")
    assert low > 0


def test_a_draft_that_was_sent_as_it_is_makes_no_pair_with_itself():
    alike = talk([MESSAGES[0], {"role": "assistant", "content": "good", "drafts": [{"id": "d1", "content": "good", "role": "agent"}]}])
    assert not pairs_of([rating(5), rating(2, draft="d1")], conversation=alike)
    assert not pairs_of([Feedback("a", "edit", "r", 1, edit=" good ")], conversation=alike), "no word was changed"


def test_an_edit_of_a_draft_is_a_pair_with_that_draft():
    made = pairs_of([Feedback("a", "edit", "r", 1, "d1", edit="not bad")])
    assert [(m["chosen"][0], m["rejected"][0]["content"], m["source"]) for m in made] == [({"role": "assistant", "content": "not bad"}, "bad", "edit")]


def test_a_draft_is_the_assistants_whatever_the_source_calls_its_author():
    conversation = talk([MESSAGES[0], {"role": "agent", "content": "good", "drafts": [{"id": 1, "role": "agent", "content": "bad"}]}])
    assert drafts_of(conversation, 1) == {"1": {"role": "assistant", "content": "bad"}}


def test_notes_of_no_reply_are_counted():
    conversation = talk()
    notes = [rating(3), rating(3, draft="d1"), rating(3, index=0), rating(3, index=7), rating(3, draft="d9"), Feedback("a", "thumb", "customer", thumb="up")]
    assert astray(conversation, prompts(conversation), notes) == 3
