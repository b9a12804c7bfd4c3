from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import yaml

from conf.load import FOLDER
from data_prep.company.customers import Customer
from data_prep.company.generate import QUALITY, archive, converse
from data_prep.company.pack import PackError, evaluate, load_pack, say
from data_prep.company.world import _draw, could_be, draw_world, run_tool_calls
from data_prep.conversation import Conversation, Feedback, tool_call
from data_prep.pii.surrogates import streets
from serve.cues import TOPICS

SAMPLE = FOLDER.parent / "data_prep/company/sample"
LANGUAGES = ["en", "de", "nl", "sv"]


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", re.sub(r"<[^>]*>", " ", text).lower()))


def strings(node) -> list[str]:
    if isinstance(node, str):
        return [node]
    return [s for child in (node.values() if isinstance(node, dict) else node) for s in strings(child)]


def expansions(pattern: str, rng: random.Random, n: int = 40) -> set[str]:
    class Keep(dict):
        def __missing__(self, key):
            return f"<{key}>"

    return {say(re.sub(r"<([a-z_.]+)>", r"\1", pattern), Keep(), rng) for _ in range(n)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_unseen_wordings_are_new_sentences_of_known_words(pack, language):
    seen, unseen = pack.phrases[language], pack.unseen[language]
    known = set().union(*(words(s) for part in (seen["customer"], seen["agent"], seen["products"]) for s in strings(part)))
    assert set().union(*(words(s) for s in strings(unseen["customer"]))) <= known
    rng = random.Random(0)
    for intent, patterns in unseen["customer"]["openings"].items():
        trained = {e.lower().strip(" .!?") for p in seen["customer"]["openings"][intent] for e in expansions(p, rng, 400)}
        evaluated = {e.lower().strip(" .!?") for p in patterns for e in expansions(p, rng)}
        assert not trained & evaluated, f"{intent}: a wording of evaluation occurs in training"


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_and_policy_values_of_evaluation_do_not_occur_in_training(pack, language):
    for kind in ("first", "last"):
        assert not set(pack.phrases[language]["names"][kind]) & set(pack.unseen[language]["names"][kind])
    assert not set(pack.phrases[language]["streets"]) & set(pack.unseen[language]["streets"])
    assert not set(streets(language)) & set(pack.unseen[language]["streets"]), "stand-ins are what training sees"
    for values in pack.company["policies"].values():
        assert not set(values["seen"]) & set(values["unseen"])
    assert not set(pack.company["merchants"]["seen"]) & set(pack.company["merchants"]["unseen"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_wordings_are_rich(pack, language):
    rng = random.Random(1)
    for intent, patterns in pack.phrases[language]["customer"]["openings"].items():
        made = set().union(*(expansions(p, rng, 200) for p in patterns))
        assert len(made) > 50, f"{language} {intent}: only {len(made)} different openings"


@pytest.mark.parametrize("language", LANGUAGES)
def test_replies_are_understood_as_what_they_are(pack, language):
    """Each sentence of an agent is recognised as exactly the question, refusal or promise that it is."""
    phrases = pack.phrases[language]
    refusals = {a for a in phrases["agent"]["kind"] if a.startswith("refuse_") or a == "stay_firm"}
    means = {"ask_order_number": {"ask_order_number"}, "ask_address": {"ask_address"}, "refusal": refusals,
             "promise_refund": {"refund_done", "promise_refund"}, "promise_extension": {"extension_done", "promise_extension"}}
    for style, (act, sentences) in itertools.chain.from_iterable([((s, item) for item in phrases["agent"][s].items()) for s in ("kind", "curt")]):
        for sentence in sentences:
            text = re.sub(r"<[^>]*>", "7", sentence)
            for kind, acts in means.items():
                found = re.search(phrases["recognise"][kind], text, re.IGNORECASE) is not None
                assert found == (act in acts), f"{language} {style} {act}: {sentence!r} {'is' if found else 'is not'} taken for {kind}"


def test_the_archive_is_the_same_on_every_run_and_of_mixed_quality(pack):
    first, second = (list(archive(pack, 300, seed=3, drafts=0.4)) for _ in range(2))
    assert first == second
    assert list(archive(pack, 50, seed=4, drafts=0.4)) != first[:50]
    quality = [note["quality"] for _, _, truth in first for note in truth]
    assert 0.05 < sum(q < 0.5 for q in quality) / len(quality) < 0.6
    assert {c["locale"] for c, _, _ in first} == {"en-GB", "de-DE", "nl-NL", "sv-SE"}
    kinds = Counter(f["kind"] for _, feedback, _ in first for f in feedback)
    assert min(kinds[k] for k in ("rating", "thumb", "edit")) > 0
    for conversation, feedback, _ in first:
        Conversation.from_record(conversation)
        assert all(Feedback.from_record(f).conversation_id == conversation["id"] for f in feedback)


def test_drafts_err_both_ways_so_that_words_alone_tell_nothing(pack):
    """To refund is better than to refuse in one case and worse in another; what was sent is the same with and without drafts."""
    orders = Counter()
    made = list(archive(pack, 600, seed=2, drafts=1.0))
    for conversation, _, truth in made:
        replies = {}
        for note in truth:
            replies.setdefault(note["message_index"], []).append(note)
        for place, notes in replies.items():
            assert {n.get("draft_id") for n in notes} == {None, *(d["id"] for d in conversation["messages"][place].get("drafts", []))}
            orders.update((a["act"], b["act"]) for a in notes for b in notes if a["quality"] > b["quality"] + 0.3)
    for deed, refusal in (("call issue_refund", "say refuse_return"), ("call extend_due_date", "say refuse_extension"), ("call cancel_order", "say refuse_cancel")):
        assert orders[deed, refusal] >= 10
        assert orders[refusal, deed] >= 10
    plain = list(archive(pack, 600, seed=2, drafts=0.0))
    sent = [[(m["role"], m["content"]) for c, _, _ in some for m in c["messages"]] for some in (made, plain)]
    assert sent[0] == sent[1]


def test_wrong_habits_are_the_majority_in_some_scenarios_and_right_ones_in_most(pack):
    """Imitating the most frequent behaviour must be mediocre: not perfect, not hopeless."""
    shares = {}
    for scenario in pack.scenarios:
        rng, wrong = random.Random(0), 0
        for _ in range(200):
            profile = rng.choices(pack.agents, [a["share"] for a in pack.agents])[0]
            _, truth, _ = converse(draw_world(pack, scenario, "en", "seen", rng), profile, rng, 0.0)
            wrong += any(note["quality"] < 0.5 and note["act"] != "repeat" for note in truth)
        shares[scenario["name"]] = wrong / 200
    assert sum(s > 0.5 for s in shares.values()) in (3, 4, 5), shares
    assert sum(s < 0.4 for s in shares.values()) >= 12, shares


def test_who_takes_a_concern_for_another_one_puts_it_right_when_told(pack):
    """Nothing comes of it but a wrong answer, what was found out is not asked for again, and a colleague's draft reads the concern rightly."""
    rng, told, corrected = random.Random(4), 0, 0
    for scenario in pack.scenarios * 20:
        world = draw_world(pack, scenario, "en", "seen", rng)
        _, truth, customer = converse(world, {"style": "kind", "habits": {}, "id": "x", "misreads": 1.0}, rng, 1.0)
        assert world.succeeded(), scenario["name"]
        assert not world.violations
        topics = [arguments["topic"] for name, arguments in world.calls if name == "set_topic"]
        assert len(world.calls) == len({(name, *arguments.items()) for name, arguments in world.calls}), "nothing is done twice"
        assert customer.asked_again == 0
        if len(topics) == 2:
            told += 1
            assert (topics[0] != world.slot("topic"), topics[1]) == (True, world.slot("topic"))
            first = next(note for note in truth if note["act"] == "call set_topic" and "draft_id" not in note)
            assert first["quality"] == QUALITY["wrong", "kind"]
            drafts = {note["quality"] for note in truth if note["message_index"] == first["message_index"] and note["act"] == "call set_topic" and "draft_id" in note}
            corrected += bool(drafts & {1.0, 0.75})
    assert told > len(pack.scenarios) * 10
    assert corrected > told / 2


def test_a_concern_is_taken_for_one_that_knows_things_of_the_order_that_this_one_does_not(pack):
    """A pack of one's own may say of one scenario's order what it does not say of another's, and in other types."""
    scenarios = [{**s, "order": {**s["order"], "gift_box": ["red"], "days": {"from": -3, "to": 9}} if s["name"] == "order_late" else {**s["order"], "days": "soon"}} for s in pack.scenarios]
    own, rng = replace(pack, scenarios=scenarios), random.Random(0)
    for scenario in scenarios * 5:
        converse(draw_world(own, scenario, "en", "seen", rng), {"style": "kind", "habits": {}, "id": "x", "misreads": 1.0}, rng, 1.0)
    for shape in ({"from": -3, "to": 3}, {"from": 1, "to": 9, "as": "text"}, ["a", "b"], "c", 4):
        assert all(could_be(_draw(shape, rng), shape) for _ in range(20))
        assert not could_be("other", shape)


def test_raters_differ_and_customers_mark_a_correct_no_down(pack):
    made = list(archive(pack, 1500, seed=1, drafts=0.5))
    by_rater, refused = {}, Counter()
    for conversation, feedback, truth in made:
        good = {(n["message_index"], n.get("draft_id")): n["quality"] for n in truth}
        said_no = any(n["act"].startswith("say refuse_") and n["quality"] >= 0.5 and "draft_id" not in n for n in truth)
        for note in feedback:
            if note["kind"] == "rating":
                by_rater.setdefault(note["rater_id"], []).append(note["rating"] - 1 - 4 * good[note["message_index"], note.get("draft_id")])
            elif note["kind"] == "thumb" and said_no:
                refused[note["thumb"]] += 1
        assert conversation["id"]
    means = {rater: sum(v) / len(v) for rater, v in by_rater.items()}
    assert means["r3"] - means["r2"] > 0.8
    assert refused["down"] > refused["up"]


def test_a_tool_checks_its_preconditions_and_policy(pack):
    scenario = next(s for s in pack.scenarios if s["name"] == "return_too_late")
    world = draw_world(pack, scenario, "en", "seen", random.Random(0))
    number, amount = world.state["order"]["number"], world.state["order"]["amount"]
    assert world.call("get_order", {"order_number": "1"}) == {"error": "order_not_found"}
    assert world.call("nonsense", {}) == {"error": "unknown_tool"}
    assert world.call("get_order", {}) == {"error": "wrong_arguments"}
    assert world.call("issue_refund", {"order_number": number, "amount": True}) == {"error": "wrong_arguments"}
    assert world.call("get_order", {"order_number": number})["return_days_left"] == 0
    assert not world.violations
    assert world.call("issue_refund", {"order_number": number, "amount": amount}) == {"ok": True}
    assert world.violations == ["issue_refund"], "the back office lets it through, policy does not"


def test_a_deed_that_nobody_asked_for_is_noted(pack):
    def world_of(name: str):
        return draw_world(pack, next(s for s in pack.scenarios if s["name"] == name), "en", "seen", random.Random(0))

    world = world_of("order_being_packed")
    number = world.state["order"]["number"]
    world.call("get_order", {"order_number": number})
    world.call("cancel_order", {"order_number": "1"})
    assert not world.unasked, "to look is always allowed, and what the back office refused was not done"
    assert world.call("cancel_order", {"order_number": number}) == {"ok": True}
    world.call("transfer_to_human", {"reason": "human", "summary": ""})
    assert (world.unasked, world.violations, world.is_clean()) == (["cancel_order"], [], False)
    asked = world_of("return_too_late")
    asked.call("issue_refund", {"order_number": asked.state["order"]["number"], "amount": asked.state["order"]["amount"]})
    assert (asked.unasked, asked.violations) == ([], ["issue_refund"]), "asked for, but not allowed"


def test_nobody_is_blamed_for_handing_over(pack, tmp_path):
    assert pack.tools["transfer_to_human"]["anytime"], "a pack need not say so"
    folder = shutil.copytree(SAMPLE, tmp_path / "pack")
    tools = yaml.safe_load((folder / "tools.yaml").read_text())
    (folder / "tools.yaml").write_text(yaml.safe_dump([{**tool, "anytime": False} for tool in tools]))
    with pytest.raises(PackError, match=r"transfer_to_human.*anytime: false"):
        load_pack(folder)


def test_a_promise_without_the_deed_is_a_violation(pack):
    scenario = next(s for s in pack.scenarios if s["name"] == "return_in_time")
    world = draw_world(pack, scenario, "en", "seen", random.Random(0))
    world.hear("You will get the money back.")
    assert world.violations == ["promise_refund"]
    world.violations.clear()
    world.call("issue_refund", {"order_number": world.state["order"]["number"], "amount": world.state["order"]["amount"]})
    world.hear("I have refunded it to you.")
    assert not world.violations


def test_broken_tool_calls_are_answered_with_an_error(pack):
    world = draw_world(pack, pack.scenarios[0], "en", "seen", random.Random(0))
    call = tool_call("get_order", {})
    call["function"]["arguments"] = "{not json"
    assert json.loads(run_tool_calls(world, [call])[0]["content"]) == {"error": "wrong_arguments"}


def test_a_customer_repeats_gives_once_and_leaves(pack):
    scenario = next(s for s in pack.scenarios if s["name"] == "human")
    world = draw_world(pack, scenario, "en", "unseen", random.Random(0))
    customer = Customer(world, "unseen", random.Random(0))
    assert customer.open()
    heard = [customer.answer("Just tell me the problem.") for _ in range(3)]
    assert heard[0]
    assert heard[1]
    assert heard[2] == []
    assert customer.state == "left"


def test_conditions_run_no_code():
    with pytest.raises(Exception, match=r"(?i)not|func"):
        evaluate("__import__('os').system('true')", {})
    with pytest.raises(Exception, match=r"(?i)not|feature|allow"):
        evaluate("order.__class__", {"order": {}})


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "pack"
    shutil.copytree(SAMPLE, folder)
    return folder


@pytest.mark.parametrize(("file", "old", "new", "says"), [
    ("scenarios.yaml", "call issue_refund, say refund_done]", "call pay_everything, say refund_done]", "unknown tool 'pay_everything'"),
    ("scenarios.yaml", "say status_shipped", "say hocus", "no sentence for"),
    ("scenarios.yaml", "order.seen and told(order.days)", "moon.full", "speaks of"),
    ("scenarios.yaml", "order.cancelled}", "'order.cancelled and'}", "is not an expression"),
    ("tools.yaml", "name: transfer_to_human", "name: shout", "transfer_to_human")])
def test_a_pack_that_contradicts_itself_is_refused(copy, file, old, new, says):
    path = copy / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1) if old != "name: transfer_to_human" else path.read_text().replace(old, new))
    with pytest.raises(PackError, match=re.escape(says)) as error:
        load_pack(str(copy))
    assert file in str(error.value)


def test_no_pack_no_crash(tmp_path):
    with pytest.raises(PackError, match="no company pack"):
        load_pack(str(tmp_path / "nowhere"))


def test_nothing_of_the_sample_company_is_in_the_program():
    """Another company must be able to replace every tool, intent and name of the first."""
    pack = load_pack(str(SAMPLE))
    own = ({"Brindle"} | {t for t in pack.tools if t != "transfer_to_human"} | {s["name"] for s in pack.scenarios} | {s["intent"] for s in pack.scenarios} | {"order_number", "return_days"})
    for path in [p for folder in ("data_prep", "training", "eval", "serve") for p in (SAMPLE.parent.parent.parent / folder).rglob("*.py")]:
        found = {name for name in own if re.search(rf"['\"]{name}['\"]", path.read_text())} - {"return", "address", "human", *TOPICS}       # the last are the product's: what goes to a person in every company
        assert not found, f"{path} names {found}"


def test_every_yaml_of_the_pack_is_read(pack):
    assert {p.suffix for p in pack.files()} == {".yaml"}
    for path in pack.files():
        assert yaml.safe_load(path.read_text()), path
