from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import iban, luhn

from data_prep.anonymise import DEMO_KEY, read_key, run
from data_prep.artifacts import StageError, require
from data_prep.conversation import Conversation, read_jsonl, tool_call, write_jsonl
from data_prep.pii import fit
from data_prep.pii.leak import leaks
from data_prep.pii.mask import Masker, compiled, is_sealed, pseudonym, seal
from data_prep.pii.surrogates import Surrogates
from tests.identifiers import found

PEOPLE = {"name": "Anna Karlsson", "email": "anna.k@mail.se", "phone": "+46 70 123 45 67", "address": "Björkvägen 12"}
DIRTY = {
    "id": "c-1", "locale": "sv-SE", "customer": {"id": "u-1", **PEOPLE}, "agents": [{"id": "a-1", "name": "Lars Holm"}],
    "messages": [
        {"role": "customer", "content": "Hej, Anna Karlsson här, order 48213. Ring +46 70 123 45 67 eller anna.k@mail.se"},
        {"role": "agent", "content": "Hej ANNA! Jag heter Lars.", "author_id": "a-1", "drafts": [{"id": "d1", "content": "Hej fru Karlsson"}]},
        {"role": "customer", "content": "Mitt kort 4111 1111 1111 1111, konto GB82 WEST 1234 5698 7654 32 tack, nummer 811228-9874"},
        {"role": "agent", "content": "", "tool_calls": [tool_call("change_address", {"order_number": "48213", "address": "Björkvägen 12", "mail": "anna.k@mail.se"})]}]}
SECRETS = ["anna", "karlsson", "lars", "holm", "mail.se", "123 45 67", "4111", "WEST", "811228", "björkvägen 12"]


@pytest.fixture
def masker():
    return Masker(DEMO_KEY, fit.load(), compiled(("help@brindlepay.example",), (r"\b\d{5}\b",)))


def test_nothing_personal_is_left_anywhere_and_the_order_number_stays(masker):
    record = masker.apply(Conversation.from_record(DIRTY)).record
    text = json.dumps(record, ensure_ascii=False)
    assert [s for s in SECRETS if s.lower() in text.lower()] == []
    assert text.count("48213") == 2
    assert set(record["customer"]) == {"id"}
    assert record["customer"]["id"] != "u-1"
    json.loads(record["messages"][3]["tool_calls"][0]["function"]["arguments"])


def test_surrogates_are_the_same_within_a_conversation_and_differ_between(masker):
    record = masker.apply(Conversation.from_record(DIRTY)).record
    first, mail = re.search(r"Hej, (\w+) (\w+) här", record["messages"][0]["content"]), re.search(r"\S+@\S+", record["messages"][0]["content"]).group()
    assert first.group(1).upper() in record["messages"][1]["content"]
    assert first.group(2) in record["messages"][1]["drafts"][0]["content"]
    assert mail in record["messages"][3]["tool_calls"][0]["function"]["arguments"]
    others = {masker.apply(Conversation.from_record({**DIRTY, "id": f"c-{i}"})).record["messages"][0]["content"] for i in range(8)}
    assert len(others) > 1


def test_the_result_does_not_depend_on_order(masker):
    records = [{**DIRTY, "id": f"c-{i}"} for i in range(5)]
    forwards = [masker.apply(Conversation.from_record(r)).record for r in records]
    backwards = [masker.apply(Conversation.from_record(r)).record for r in reversed(records)]
    assert forwards == backwards[::-1]


def test_public_identifiers_stay(masker):
    conversation = Conversation.from_record({"id": "c", "messages": [{"role": "user", "content": "I wrote to help@brindlepay.example"}, {"role": "assistant", "content": "ok"}]})
    assert "help@brindlepay.example" in masker.apply(conversation).record["messages"][0]["content"]


@pytest.mark.parametrize(("text", "locale", "kind"), [
    ("mail bob.smith+x@corp.co.uk now", "en-GB", "email"), ("card 5555-5555-5555-4444", "en-GB", "card"), ("DE89370400440532013000 bitte", "de-DE", "iban"),
    ("IBAN se45 5000 0000 0583 9825 7466 please", "sv-SE", "iban"), ("BSN 111222333", "nl-NL", "national_id"), ("meine Steuer-ID 36574261809", "de-DE", "national_id"),
    ("call 020 7183 8750", "en-GB", "phone"), ("0170 1234567 rufen", "de-DE", "phone"), ("to 14 Church Lane please", "en-GB", "address"),
    ("nach Lindenstraße 7b", "de-DE", "address"), ("naar Kerkstraat 14", "nl-NL", "address"), ("till Storgatan 3", "sv-SE", "address")])
def test_detects(text, locale, kind):
    assert [span.kind for span in found(text, locale)] == [kind]


@pytest.mark.parametrize("text", ["order 48213", "I paid 249 euro", "version 12.4.0.1", "within 30 days", "item SKU-99120-B", "2 x shoes at 14:30", "error 0x80070057"])
def test_leaves_ordinary_numbers_alone(text):
    assert found(text, "en-GB", business=(re.compile(r"\b\d{5}\b"),)) == []


@given(st.text(max_size=60))
def test_masking_is_total(text):
    conversation = Conversation.from_record({"id": "c", "customer": PEOPLE, "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]})
    result = Masker(DEMO_KEY, fit.load())._apply(conversation, [])
    assert result.record is not None or result.reasons


@given(st.integers(10**15, 10**16 - 1), st.text("0123456789", min_size=1))
def test_surrogate_identifiers_are_never_valid_ones(number, key):
    surrogates = Surrogates(key.encode(), "c", "de-DE", fit.load().lexicon)
    card = surrogates.of("card", str(number))
    assert not luhn.is_valid(card)
    assert not iban.is_valid(surrogates.of("iban", "DE89370400440532013000"))


def test_the_leak_check_finds_what_masking_missed():
    assert leaks(["Hej Karlsson"], [PEOPLE], [], ()) == ["a known name left"]
    assert leaks(["ring 0701234567"], [], [("phone", "070-123 45 67")], ()) == ["digits of a masked phone left"]
    assert leaks(["ring 070-123 45 67"], [], [], (), "SE") == ["a valid phone number"]
    assert leaks(["a@b.se"], [], [], ()) == ["an e-mail address that is no stand-in"]
    assert leaks(["4111 1111 1111 1111"], [], [], ()) == ["a valid card number"]
    assert leaks(["GB82 WEST 1234 5698 7654 32"], [], [], ()) == ["a valid IBAN"]
    assert leaks(["811228-9874"], [], [], ()) == ["a valid national id"]
    assert leaks(["sk_live_abcdefgh1234"], [], [], ()) == ["a secret"]
    assert leaks(["order 48213, alice.b12@example.com, +46 70 174 06 12"], [PEOPLE], [], (), "SE") == []


def test_a_seal_is_proof_and_breaks_when_touched():
    record = seal({"id": "c", "messages": []}, DEMO_KEY)
    assert is_sealed(record, DEMO_KEY)
    assert not is_sealed({**record, "id": "d"}, DEMO_KEY)
    assert not is_sealed(record, b"another key")
    assert not is_sealed({"id": "c"}, DEMO_KEY)


def test_a_real_archive_needs_a_key_of_its_own(monkeypatch):
    monkeypatch.delenv("SUPPORTLOOP_KEY", raising=False)
    assert read_key(None, sample=True) == DEMO_KEY
    with pytest.raises(StageError, match="SUPPORTLOOP_KEY"):
        read_key(None, sample=False)


@pytest.fixture
def jsonl(config, tmp_path, monkeypatch):
    monkeypatch.setenv("SUPPORTLOOP_KEY", "a key")
    config.data.format, config.data.conversations, config.data.feedback = "jsonl", str(tmp_path / "in.jsonl"), str(tmp_path / "feedback.jsonl")
    config.anonymise.canaries = 24
    write_jsonl(tmp_path / "in.jsonl", [{**DIRTY, "id": f"c-{i}"} for i in range(4)])
    write_jsonl(tmp_path / "feedback.jsonl", [
        {"conversation_id": "c-1", "kind": "edit", "edit": "Hej Anna Karlsson", "rater_id": "Eva", "message_index": 1},
        {"conversation_id": "c-9", "kind": "rating", "rating": 5}])
    return config


def test_the_stage_masks_edits_too_and_counts_feedback_without_a_conversation(jsonl):
    jsonl.company = None
    run(jsonl)
    folder = require(jsonl, "anonymise", "test")
    everything = "".join(p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file() and p.suffix != ".crfsuite")      # it knows endings of words
    assert [s for s in (*SECRETS, "Eva") if s.lower() in everything.lower()] == []
    assert [f["conversation_id"] for _, f in read_jsonl(folder / "feedback.jsonl")] == [pseudonym(b"a key", "conversation", "c-1")]
    assert json.loads((folder / "report.json").read_text())["input"]["feedback: feedback for a conversation that is not in the archive or was dropped"] == 1


@pytest.mark.parametrize(("lines", "says"), [
    (["not json"] * 3, "in.jsonl line 1: not JSON"), ([json.dumps({"id": "a"})], "lacks `messages`"), ([], "holds no conversation"),
    ([json.dumps({"id": "a", "messages": [{"role": "user", "content": "x"}]})], "one side only: user")])
def test_bad_input_stops_with_the_line_and_the_reason(jsonl, tmp_path, lines, says):
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with pytest.raises(StageError, match=re.escape(says)):
        run(jsonl)


def test_a_few_bad_lines_are_counted_and_quarantined(jsonl, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(path.read_text() + "not json\n")
    jsonl.data.max_bad_fraction = 0.5
    run(jsonl)
    quarantine = [q for _, q in read_jsonl(require(jsonl, "anonymise", "t") / "quarantine.jsonl")]
    assert {"id": "in.jsonl line 5", "reasons": ["not JSON in UTF-8"]} in quarantine


def test_a_rating_of_seven_is_refused_with_its_line(jsonl, tmp_path):
    write_jsonl(tmp_path / "feedback.jsonl", [{"conversation_id": "c-1", "kind": "rating", "rating": 7}])
    with pytest.raises(StageError, match=r"feedback.jsonl line 1: rating 7 is not on the scale 1 to 5"):
        run(jsonl)


def test_the_filter_gives_one_line_out_per_line_in_in_order():
    sealed = seal({"id": "s", "messages": [{"role": "user", "content": "x"}]}, b"k")
    lines = [json.dumps(DIRTY), "not json", json.dumps(sealed), json.dumps({"id": "only"})]
    made = subprocess.run([sys.executable, "-m", "data_prep.anonymise"], input="\n".join(lines) + "\n", capture_output=True, text=True, check=True, env={"SUPPORTLOOP_KEY": "k", "PATH": "/usr/bin"})
    out = [json.loads(line) for line in made.stdout.splitlines()]
    assert len(out) == 4
    assert "Karlsson" not in made.stdout + made.stderr
    assert out[1] == {"id": None, "quarantined": ["not JSON"]}
    assert out[2] == sealed
    assert out[3]["quarantined"] == ["lacks `messages`"]


@pytest.mark.parametrize(("text", "is_one"), [("It went out to the card ending 4821 on Monday.", False), ("Pick it up at the dock ending 12.", False), ("I live at The Ridings 12.", True), ("rue Victor Hugo 7", True)])
def test_the_end_of_a_card_is_no_street(text, is_one):
    from data_prep.pii.address import addresses

    assert bool(list(addresses(text, None, "fr" if text.startswith("rue") else "en"))) == is_one
