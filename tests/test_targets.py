from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from data_prep.conversation import tool_call
from data_prep.targets import CLAIM, PERSON, PROMISE, backing, claims, failed, fit, unfit, without_person

SEEN, UNSEEN = (yaml.safe_load((Path(__file__).parent / f"fixtures/{name}.yaml").read_text(encoding="utf-8")) for name in ("claims", "claims_unseen"))


def agent(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def done(tool: str, result: object = None) -> list[dict]:
    return [{"role": "user", "content": "please"}, agent("", tool_calls=[tool_call(tool, {}, "c1")]),
            {"role": "tool", "tool_call_id": "c1", "content": json.dumps({"ok": True} if result is None else result)}]


def flat(sentences: dict[str, list[str]]) -> list[str]:
    return [text for texts in sentences.values() for text in texts]


def test_what_the_rules_were_mended_with_is_judged_right():
    assert [text for text in flat(SEEN["claims"]) if unfit([], agent(text)) != CLAIM] == []
    assert [text for text in SEEN["promises"] if unfit([], agent(text)) is None] == []
    assert [text for text in [*flat(SEEN["fit"]), *SEEN["nobody"]] if unfit([], agent(text))] == []
    assert [text for text in SEEN["people"] if unfit([], agent(text)) != PERSON] == []


def test_recall_on_sentences_that_made_no_rule():
    texts = [*flat(UNSEEN["claims"]), *UNSEEN["promises"]]
    found = [text for text in texts if unfit([], agent(text)) in (CLAIM, PROMISE)]
    assert len(UNSEEN["claims"]) == 12
    assert len(texts) >= 50
    assert len(found) / len(texts) >= 0.85       # 47 of 52


def test_precision_on_sentences_that_made_no_rule():
    wrong = [text for text in flat(UNSEEN["fit"]) if unfit([], agent(text))]
    assert len(flat(UNSEEN["fit"])) >= 40
    assert len(wrong) <= 1
    assert sum(bool(unfit([], agent(text))) for text in UNSEEN["nobody"]) <= 2       # 2 of 12


def test_introductions_that_made_no_rule_are_taken_out_and_the_question_stays():
    for text in UNSEEN["people"]:
        message, change = fit([], agent(text))
        assert change == f"rewritten: {PERSON}", text
        assert message["content"].rstrip("?. ")[-12:] in text, "what was asked is still asked"


@pytest.mark.parametrize(("tool", "result", "text", "says"), [
    ("issue_refund", None, "I have refunded 40 euro.", None),
    ("issueRefund", None, "I have refunded 40 euro.", None),
    ("issue_refund", {"error": "wrong_amount"}, "I have refunded 40 euro.", CLAIM),
    ("issue_refund", {"status": "declined"}, "I have refunded 40 euro.", CLAIM),
    ("get_order", None, "I have refunded 40 euro.", CLAIM),
    ("cancel_order", None, "I have refunded 40 euro.", CLAIM),
    ("cancel_order", None, "I have cancelled your order.", None),
    ("get_order", None, "I have cancelled your order.", CLAIM),
    ("get_order", {"status": "cancelled"}, "Your order has been cancelled.", None),
    ("task_17", None, "I have refunded 40 euro.", None),
    ("issue_refund", None, "We will refund you today.", None),
    ("cancel_order", None, "We will refund you today.", PROMISE)])
def test_a_claim_is_backed_by_a_call_that_succeeded_and_does_such_things(tool, result, text, says):
    assert unfit(done(tool, result), agent(text)) == says


def test_a_promise_is_kept_by_a_call_in_the_same_message():
    assert unfit([], agent("I will refund you now.", tool_calls=[tool_call("issue_refund", {})])) is None
    assert unfit([], agent("I will refund you now.", tool_calls=[tool_call("get_order", {})])) == PROMISE


def test_calls_with_one_id_are_told_apart_by_their_order():
    assert backing([*done("issue_refund", {"error": "x"}), *done("get_order")]) == {"state"}
    assert backing([*done("get_order"), *done("issue_refund")]) == {"state", "other", "money"}


@pytest.mark.parametrize(("result", "says"), [
    ('{"ok":true}', False), ("null", False), ("done", False), ('{"error": ""}', False), ('{"error": "x"}', True), ('{"success": false}', True), ("Error: no such order", True), ("false", True)])
def test_a_result_says_whether_it_failed(result, says):
    assert failed(result) is says


@pytest.mark.parametrize(("text", "rest"), [
    ("Hi, I'm Anna, how can I help?", "Hi, how can I help?"),
    ("Hi! I’m Anna and I will look into it.", ""),
    ("I'm Anna.", ""),
    ("It is on its way. Best regards, Anna Berg, Support", "It is on its way."),
    ("It is on its way.\n/Anna", "It is on its way."),
    ("Open Monday - Friday", "Open Monday - Friday"),
    ("My name is Anna, and I see that your parcel is late. Shall I call?", "I see that your parcel is late. Shall I call?")])
def test_a_name_is_cut_out_and_the_rest_stays_a_sentence(text, rest):
    assert without_person(text) == rest


def test_an_introduction_with_nothing_else_is_left_out():
    assert fit([], agent("Hello, my name is Anna.")) == (None, f"excluded: {PERSON}")


def test_a_call_without_text_and_a_plain_reply_stay_as_they_are():
    call = agent("", tool_calls=[tool_call("issue_refund", {})])
    assert fit([], call) == (call, None)
    assert fit([], agent("What is your order number?")) == (agent("What is your order number?"), None)


def test_denied_asked_and_conditional_claims_are_none():
    for text in ("I have not refunded it.", "Have I cancelled the right one?", "When I have cancelled it, you get a mail.", "We will refund you once it is here."):
        assert list(claims(text)) == []


def test_the_sample_companys_agents_keep_every_claim_they_acted_for(pack):
    """Each wording of an action done is fit after its tool, and a promise of money is unfit after a look-up alone."""
    tools = {"refund_done": "issue_refund", "extension_done": "extend_due_date", "cancel_done": "cancel_order", "address_done": "change_address",
             "invoice_sent": "send_invoice", "handoff_fraud": "block_card"}
    for language, phrases in pack.phrases.items():
        for manner, lines in phrases["agent"].items():
            for line, tool in tools.items():
                assert all(unfit(done(tool), agent(text)) is None for text in lines[line]), (language, manner, line)
        promises = [text for lines in phrases["agent"].values() for text in lines["promise_refund"]]
        assert sum(unfit(done("get_order"), agent(text)) == PROMISE for text in promises) >= len(promises) - 1, language
