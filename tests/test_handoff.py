"""The guard: each reason for which a person takes over, and that it lets everything else through."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_prep.company.generate import archive
from data_prep.company.pack import say
from data_prep.conversation import tool_call
from eval.handoff import SUITES, TOPICS, messages_of
from serve.cues import CLASSES, FOLDER, KINDS, clauses, language_of, languages, needs_person, normal, p_person, probabilities
from serve.handoff import TRANSFER, amount, calls, claimed, forbidden, guarded, invented, known_facts, policy_of, summary, untrue

SYSTEM = {"role": "system", "content": "Returns: 28 days. Late fee: 9 euro."}
ASKS = {"role": "assistant", "content": "Of course, I am happy to help. What is your order number?"}


@pytest.fixture(scope="module")
def policy(pack):
    return policy_of(pack)


def said(*texts):
    return [SYSTEM, *({"role": "user", "content": text} for text in texts)]


def call(name, arguments, result):
    return [{"role": "assistant", "content": "", "tool_calls": [tool_call(name, arguments)]}, {"role": "tool", "tool_call_id": "call_0", "content": json.dumps(result)}]


@pytest.mark.parametrize(("text", "reason"), [
    ("Put me through to somebody who works there", "human"), ("MENSCH!!!", "human"), ("mag ik een echt persoon spreken", "human"), ("jag vill prata med en människa", "human"),
    ("I will end my life tonight", "self_harm"), ("somebody hacked my account and bought a phone", "fraud"), ("my lawyer will sue you", "legal"),
    ("quisiera saber cuándo llega mi pedido, por favor", "language"), ("注文した靴はいつ届きますか", "language"), ("Where is the parcel with my shoes?", None), ("Wann kommt mein Paket?", None), ("81401", None)])
def test_what_a_customer_says_decides_who_answers(policy, text, reason):
    reply, why = guarded(said(text), ASKS, policy)
    assert why == reason
    assert (reply is ASKS) == (reason is None)
    if reason:
        [made] = reply["tool_calls"]
        assert made["function"]["name"] == TRANSFER
        assert json.loads(made["function"]["arguments"])["reason"] == reason
        assert reply["content"], "a customer reads why nobody answers"


def test_a_handoff_is_said_in_the_language_of_the_customer(policy):
    for code, text in (("de", "Ich will mit einem Mitarbeiter sprechen"), ("nl", "ik wil een medewerker spreken"), ("fr", "bonjour, où est mon colis s'il vous plaît"), ("en", "I want to speak to a human")):
        reply, why = guarded(said(text), ASKS, policy)
        assert reply["content"] == languages()[code].say["human" if code != "fr" else "language"], (code, why)


def test_what_is_being_looked_up_may_be_looked_up_first(policy):
    looks = {"role": "assistant", "content": "", "tool_calls": [tool_call("block_card", {})]}
    assert guarded(said("my card was stolen, somebody bought things with it"), looks, policy).reason is None
    assert guarded(said("I will end my life tonight"), looks, policy).reason == "self_harm", "not there"
    assert guarded([*said("Where is order 81401?"), *call("get_order", {"order_number": "81401"}, {"error": "x"}) * 6], looks, policy).reason == "stuck"
    assert guarded(said("Hello"), {"role": "assistant", "content": ""}, policy).reason == "stuck", "a reply of nothing helps nobody"


def test_a_promise_needs_the_deed(policy):
    promise = {"role": "assistant", "content": "Done! You get 57 euro back in the next days."}
    asked = said("I want to return my shoes, order 81401, they cost 57 euro")
    assert guarded(asked, promise, policy).reason == "promise"
    assert guarded([*asked, *call("issue_refund", {"order_number": "81401", "amount": 57}, {"error": "wrong_amount"})], promise, policy).reason == "promise", "an error is no deed"
    assert guarded([*asked, *call("get_order", {"order_number": "81401"}, {"amount": 57})], promise, policy).reason == "promise", "nor is a look"
    assert guarded([*asked, *call("issue_refund", {"order_number": "81401", "amount": 57}, {"ok": True})], promise, policy).reason is None


def test_an_amount_that_nothing_holds_is_not_said(policy):
    asked = said("What does it cost to pay late?")
    assert guarded(asked, {"role": "assistant", "content": "The late fee is 11 euro."}, policy).reason == "invented"
    assert guarded(asked, {"role": "assistant", "content": "The late fee is 9 euro."}, policy).reason is None
    assert invented(asked, "It takes 5 days and costs 9 euro", money=True) == []
    assert invented(asked, "It takes 5 days and costs 9 euro", money=False) == ["5"]
    assert invented([*asked, *call("get_order", {"order_number": "1"}, {"amount": 120})], "€120 or 121 kr", money=True) == ["121"]


def test_a_number_that_holds_for_something_else_is_not_said(pack, policy):
    """Every sentence of the sample's agents that says what holds is a claim of that very thing, and is stopped where its number is another thing's."""
    known = [*said("How long do I have?", "order 48213"), *call("get_order", {"order_number": "48213"}, {"status": "shipped", "days": 3, "amount": 90, "return_days_left": 0})]
    known[0]["content"] = say(pack.company["system"], {"merchant": "Lumo", "policy": {"return_days": 28, "extension_days": 12, "late_fee": 9}}, random.Random(0))
    true, checked = {"policy": {"return_days": 28, "extension_days": 12, "late_fee": 9}, "order": {"days": 3, "amount": 90}}, 0
    wrong = {"policy": {"return_days": 12, "extension_days": 28, "late_fee": 3}, "order": {"days": 9, "amount": 28}}
    for phrases in pack.phrases.values():
        for texts in phrases["agent"]["kind"].values():
            for text in [texts] if isinstance(texts, str) else texts:
                paths = re.findall(r"<((?:policy|order)[.][a-z_]+)>", text)
                if paths and "order.due_days" not in paths:
                    assert [path for path, _ in claimed(re.sub("<[^>]+>", "5", text), policy["claims"])] == paths, text
                    checked += 1
    assert checked > 40
    for text in ("You can return items within <policy.return_days> days.", "Ihre Bestellung kommt in <order.days> Tagen an.", "De boete is <policy.late_fee> euro."):
        assert not untrue(known, say(text, true, random.Random(0)), policy)
        assert untrue(known, say(text, wrong, random.Random(0)), policy)
        assert forbidden(known, {"role": "assistant", "content": say(text, wrong, random.Random(0))}, policy) == "invented"


def test_what_is_said_beside_it_does_not_hide_a_request(policy):
    """Reviewed: an ordinary sentence before a request made the whole look ordinary."""
    for text in ("The parcel came on Monday, thanks for that. I want to speak to a real person now.", "Where is my parcel?\nThe size was wrong too.\nLET ME TALK TO A HUMAN BEING"):
        assert guarded(said(text), ASKS, policy).reason == "human"
    assert guarded(said("The parcel came on Monday. The shoes are fine. I will end my life tonight."), ASKS, policy).reason == "self_harm"


def test_a_reply_that_hands_over_does_nothing_forbidden_on_the_way(policy):
    over = tool_call(TRANSFER, {"reason": "human", "summary": "x"}, "b")
    deed = {"role": "assistant", "content": "A colleague takes over.", "tool_calls": [tool_call("issue_refund", {"order_number": "81401", "amount": 500}, "a"), over]}
    reply, why = guarded(said("refund me, order 81401"), deed, policy)
    assert why == "not_allowed"
    assert [c["function"]["name"] for c in reply["tool_calls"]] == [TRANSFER]
    assert guarded(said("refund me"), {"role": "assistant", "content": "You get 500 euro back. A colleague takes over.", "tool_calls": [over]}, policy).reason == "promise"


def test_a_handoff_that_failed_is_made_again(policy):
    for result in ({"error": "no_agent"}, {"ok": False}):
        talk = [*said("I want a human"), *call(TRANSFER, {"reason": "human", "summary": "x"}, result), {"role": "user", "content": "Hello? Is anybody there?"}]
        assert guarded(talk, {"role": "assistant", "content": "I can help you with that myself."}, policy).reason == "human"
    unanswered = [*said("I want a human"), call(TRANSFER, {"reason": "human", "summary": "x"}, {})[0], {"role": "user", "content": "so?"}]
    assert guarded(unanswered, {"role": "assistant", "content": "How can I help?"}, policy).reason == "human"


def test_what_names_a_thing_is_read_from_the_packs_conditions(pack):
    tools = {**pack.tools, "get_order": {**pack.tools["get_order"], "parameters": {"order_number": "integer"}, "requires": {"x": "order.number == arguments.order_number"}}}
    assert policy_of(replace(pack, tools=tools))["identity"] == ["order_number"], "however it is written, whatever its type; a price is no name"


@pytest.mark.parametrize("text", ["You get 500 Kč", "You get ¥5000", "It is EUR500", "500 kroner", "₺200", "500 руб"])
def test_money_of_other_countries_is_money(text):
    assert invented(said("hello"), text, money=True)


def test_a_template_may_end_in_a_value_and_name_one_twice(policy):
    named = {**policy, "system": "Shop <merchant>, days <policy.return_days>, again <policy.return_days>"}
    assert known_facts([{"role": "system", "content": "Shop x, days 12, again 12"}], named, {}) == {"policy": {"return_days": 12}}
    assert known_facts([{"role": "system", "content": "days 12"}], {**policy, "system": "days <policy.return_days>"}, {}) == {"policy": {"return_days": 12}}


def test_another_orders_facts_allow_nothing(policy):
    """Policy is asked with what is known of the very order that something is to be done with."""
    facts = {"status": "delivered", "days": 3, "amount": 40, "return_days_left": 5, "extended": False, "due_days": 2}
    talk = [*said("I want to return my shoes"), *call("get_order", {"order_number": "81401"}, facts)]

    def refund(number):
        return {"role": "assistant", "content": "", "tool_calls": [tool_call("issue_refund", {"order_number": number, "amount": 40})]}

    assert guarded(talk, refund("81401"), policy).reason is None
    assert guarded(talk, refund("77777"), policy).reason == "not_allowed", "never looked up"
    late = [*talk, *call("get_order", {"order_number": "77777"}, {**facts, "return_days_left": 0})]
    assert guarded(late, refund("77777"), policy).reason == "not_allowed"
    assert guarded(late, refund("81401"), policy).reason is None


def test_policy_values_are_read_from_the_system_message(pack, policy):
    talk = [{"role": "system", "content": "Support of Brindle Pay for Lumo. Returns: 28 days. Extension: 12 days, once. Late fee: 9 euro."}, {"role": "user", "content": "two weeks more please"},
            *call("get_order", {"order_number": "1"}, {"extended": False})]

    def extend(days):
        return guarded(talk, {"role": "assistant", "content": "", "tool_calls": [tool_call("extend_due_date", {"order_number": "1", "days": days})]}, policy).reason

    assert (extend(12), extend(14)) == (None, "not_allowed")
    assert guarded(talk[1:], {"role": "assistant", "content": "", "tool_calls": [tool_call("extend_due_date", {"order_number": "1", "days": 12})]}, policy).reason == "not_allowed", "what is not known allows nothing"


def test_who_goes_on_in_another_language_gets_a_person(policy):
    talk = [*said("Hello, I would like to know when my parcel with the shoes will arrive, please"), ASKS, {"role": "user", "content": "Perdone, prefiero seguir en español porque no entiendo bien"}]
    assert guarded(talk, {"role": "assistant", "content": "It arrives soon."}, policy).reason == "language"


@pytest.mark.parametrize(("a", "b"), [("1,250.00", "1250"), ("12.5", "12.50"), ("1250", "1 250"), ("1.250,50", "1250.50"), ("9,00", "9"), ("12.5", "12,5")])
def test_an_amount_is_the_same_however_it_is_written(a, b):
    assert amount(a) == amount(b)


def test_nothing_is_said_twice_and_nothing_given_is_asked_again(policy):
    before = [*said("Where is my parcel?"), ASKS, {"role": "user", "content": "why do you want to know that"}]
    assert guarded(before, {**ASKS, "content": ASKS["content"].replace(",", "")}, policy).reason == "loop"
    assert guarded(before, {"role": "assistant", "content": "To find your parcel. Could you give me your order number?"}, policy).reason is None
    given_ = [*said("Where is my parcel?"), ASKS, {"role": "user", "content": "it is 81401"}]
    assert guarded(given_, {"role": "assistant", "content": "Gladly! Could you give me your order number?"}, policy).reason == "asked_again"


def test_who_asks_is_told_that_it_is_an_ai(policy):
    reply, why = guarded(said("Wait, am I talking to a bot?"), {"role": "assistant", "content": "I am Anna from the service team."}, policy)
    assert why in ("ai", "human")
    assert "Anna" not in reply["content"]
    looking = {"role": "assistant", "content": "", "tool_calls": [tool_call("get_order", {"order_number": "81401"})]}
    assert guarded(said("Are you a chatbot or a human being?"), looking, policy).reply["content"] == languages()["en"].say["ai"]


def test_a_model_that_hands_over_keeps_its_words_and_gets_a_whole_summary(policy):
    own = {"role": "assistant", "content": "Gladly, a colleague takes over now.", "tool_calls": [tool_call(TRANSFER, {"reason": "human", "summary": "Customer asks for a person."})]}
    talk = [*said("I want to return my shoes", "order 81401"), *call("get_order", {"order_number": "81401"}, {"status": "delivered", "days": 3}), *call("issue_refund", {"order_number": "81401", "amount": 5}, {"error": "wrong_amount"})]
    reply, why = guarded(talk, own, policy)
    assert (why, reply["content"]) == (None, own["content"])
    text = json.loads(reply["tool_calls"][0]["function"]["arguments"])["summary"]
    for part in ("order_number 81401", "I want to return my shoes", "get_order: ok", "issue_refund: wrong_amount", "status delivered", "days 3", "Next: Speak with the customer."):
        assert part in text
    assert guarded(talk, {**own, "content": ""}, policy).reply["content"] == languages()["en"].say["human"]
    broken = {**own, "tool_calls": [{**own["tool_calls"][0], "function": {"name": TRANSFER, "arguments": "{"}}]}
    assert json.loads(guarded(talk, broken, policy).reply["tool_calls"][0]["function"]["arguments"])["reason"] == "human"


def test_after_a_handoff_the_guard_keeps_quiet(policy):
    over = [*said("I want a human"), *call(TRANSFER, {"reason": "human", "summary": "x"}, {"ok": True}), {"role": "user", "content": "are you there? I want a human"}]
    assert guarded(over, ASKS, policy).reason is None


def test_calls_are_matched_within_their_message():
    """Models number the calls of each message anew: call_0 is not the same call twice."""
    talk = [*call("a", {"x": 1}, {"ok": True}), *call("b", {"x": 2}, {"error": "e"}), {"role": "tool", "tool_call_id": "call_0", "content": "{}"}]
    assert calls(talk) == [("a", {"x": 1}, {"ok": True}), ("b", {"x": 2}, {"error": "e"})]
    assert calls(call("a", {}, {})[:1]) == []


def test_most_replies_of_good_agents_pass_untouched(pack, policy):
    """The archive's agents do what they say: where a customer needs no person, the guard has nothing to change."""
    changed = total = 0
    kinds = {"order_on_its_way", "order_being_packed", "return_in_time", "cancel_in_time", "late_fee", "return_window", "invoice"}
    names = {s["intent"] for s in pack.scenarios if s["name"] in kinds}
    for conversation, _, truth in archive(pack, 300, 5, 0.0):
        if conversation["outcome"]["intent"] in names and all(note["quality"] >= 0.75 for note in truth):
            for place, message in enumerate(conversation["messages"]):
                if message["role"] == "assistant":
                    total += 1
                    changed += guarded(conversation["messages"][:place], message, policy).reason is not None
    assert total > 100
    assert changed / total < 0.03, (changed, total)


def test_thirty_five_languages_each_with_everything():
    assert len(languages()) == 35
    for code, language in languages().items():
        assert set(language.cues) == set(KINDS)
        assert set(language.topics) == set(TOPICS)
        assert set(language.say) == {"human", "urgent", "self_harm", "loop", "unsure", "language", "ai"}, code
        assert not any(set("<>{}") & set(text) for text in language.say.values()), code
        assert language_of(" ".join(language.say.values()), ["en"]) in (code, *{"nb": ["da"], "hr": ["sr"], "sr": ["hr"]}.get(code, [])), code


def test_the_suite_was_not_written_into_the_guard():
    """No message of the suite, of two words or more, is among the guard's lists or examples; a bare word for a person can be written one way only."""
    for half in ("dev", "test"):
        for code, kind, text in messages_of(half):
            lists = _texts(code)
            assert kind == "bare" or normal(text) not in lists, (code, text)
    assert {path.stem for path in (SUITES / "handoff").glob("*.yaml")} == set(languages())


def _texts(code, held={}):          # noqa: B006
    if code not in held:
        lists = yaml.safe_load((FOLDER / f"{code}.yaml").read_text(encoding="utf-8"))
        held[code] = {normal(str(t)) for key in ("request", "mention", "ai_question") for t in lists[key]} | {normal(t) for texts in lists["examples"].values() for t in texts} | {normal(t.replace("*", "")) for texts in lists["topics"].values() for t in texts}
    return held[code]


def test_dev_and_test_halves_share_nothing():
    dev, test = ({(code, normal(text)) for code, kind, text in messages_of(half) if kind != "bare"} for half in ("dev", "test"))
    assert not dev & test


def test_words_are_compared_without_dress():
    assert normal("H U M A N!!") == "human"
    assert normal("Méñschen, BITTE") == "menschen bitte"
    assert normal("Agenttttt") == "agent"
    assert normal("İnsan") == "insan"
    assert normal("मैं इंसान") == "मैं इंसान"
    assert clauses("He said no. I want a person, now") == ["he said no", "i want a person", "now"]


@given(st.text(max_size=200), st.sampled_from(["en", "ja", "ar", "hi"]))
def test_any_text_at_all_has_probabilities(text, code):
    found = probabilities(text, languages()[code])
    assert set(found) == set(CLASSES)
    assert abs(sum(found.values()) - 1) < 1e-4
    assert p_person(needs_person(text, languages()[code])) >= p_person(found) - 1e-6


@given(st.lists(st.sampled_from(["user", "assistant", "tool"]), max_size=8), st.text(max_size=60))
def test_the_guard_never_breaks_on_a_conversation(pack, roles, text):
    talk = [{"role": role, "content": text, **({"tool_call_id": "call_0"} if role == "tool" else {})} for role in roles]
    reply, _ = guarded(talk, {"role": "assistant", "content": text}, policy_of(pack))
    assert isinstance(reply["content"], str)
    assert isinstance(summary(talk, "human", policy_of(pack)), str)
