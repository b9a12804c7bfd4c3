"""What becomes of a conversation: stand-ins nobody owns, dates that keep their distance, the same bytes however it is run."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import replace

import phonenumbers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stdnum import get_cc_module

from data_prep.anonymise import filtered, make_masker, make_work
from data_prep.artifacts import StageError
from data_prep.conversation import Conversation, tool_call
from data_prep.engines import mapped
from data_prep.pii import dates, fit, ner
from data_prep.pii.announce import markets
from data_prep.pii.canaries import canaries, survivors
from data_prep.pii.leak import leaks
from data_prep.pii.lexicon import phrases
from data_prep.pii.mask import Masker, decrypted, moved, texts_of, weeks_of
from data_prep.pii.structured import IBAN_LENGTHS
from data_prep.pii.surrogates import Surrogates, is_reserved_phone, reserved
from tests import identifiers

KEY = b"a key of the tests"
TALK = {"id": "c-1", "locale": "de-DE", "started_at": "2026-03-11T09:12:00Z", "customer": {"id": "u-1", "name": "Anna-Lena Brückner", "email": "a.brueckner@post.de", "phone": "+49 171 2345678"},
        "agents": [{"id": "a-1", "name": "Jonas Weiß"}],
        "messages": [{"role": "user", "content": "Hallo, Brückner hier. Karte 4111 1111 1111 1111, endet auf 1111. Bestellt am 02.03.2026, 49,90 €, Nr. 48213", "at": "2026-03-11T09:12:00Z"},
                     {"role": "assistant", "content": "Guten Tag Frau Brückner, ich bin Jonas.", "author_id": "a-1", "secret_note": "raw"},
                     {"role": "assistant", "content": "", "tool_calls": [tool_call("find", {"mail": "a.brueckner@post.de", "nested": json.dumps({"name": "Anna-Lena Brückner"})})]},
                     {"role": "tool", "tool_call_id": "call_0", "content": '{"ordered_on": "2026-03-02", "name": "Anna-Lena Brückner"}'}]}


@pytest.fixture(scope="module")
def masker():
    return Masker(KEY, identifiers.shipped())


def test_what_knows_the_helpdesk_goes_and_the_order_stays(masker):
    record = masker._apply(Conversation.from_record(TALK), []).record
    text = json.dumps(record, ensure_ascii=False)
    assert not [s for s in ("Brückner", "Anna-Lena", "Jonas", "Weiß", "4111", "1111", "post.de", "secret_note", "u-1") if s in text]
    assert "48213" in text
    assert "49,90 €" in text
    assert json.loads(json.loads(record["messages"][2]["tool_calls"][0]["function"]["arguments"])["nested"])["name"] != "Anna-Lena Brückner"


def test_keys_of_tool_calls_stay(masker):
    said = {"id": "c", "locale": "nl-NL", "messages": [{"role": "user", "content": "waar is mijn pakket"}, {"role": "assistant", "content": "", "tool_calls": [tool_call("look_up", {"topic": "order_status"})]}]}
    assert masker._apply(Conversation.from_record(said), []).record["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"topic": "order_status"}'


def test_the_end_of_a_card_is_the_end_of_its_stand_in(masker):
    said = masker._apply(Conversation.from_record(TALK), []).record["messages"][0]["content"]
    card, last = re.search(r"Karte ((?:\d{4} ?){4}), endet auf (\d{4})", said).groups()
    assert card.strip()[-4:] == last


def test_dates_move_together_and_by_whole_weeks(masker):
    record = masker._apply(Conversation.from_record(TALK), []).record
    weeks = weeks_of(KEY, "c-1")
    assert weeks != 0
    moved_to = datetime.date(2026, 3, 2) + datetime.timedelta(weeks=weeks)
    assert moved_to.strftime("%d.%m.%Y") in record["messages"][0]["content"]
    assert moved_to.isoformat() in record["messages"][3]["content"]
    assert record["messages"][0]["at"] == record["started_at"] == moved(TALK["started_at"], weeks)


@pytest.mark.parametrize(("text", "locale", "becomes"), [
    ("2026-03-11", "sv-SE", "2026-03-25"), ("11.03.2026", "de-DE", "25.03.2026"), ("3/11/26", "en-US", "3/25/26"), ("11/03/2026", "en-GB", "25/03/2026"), ("11 March", "en-GB", "25 March"),
    ("March 11th, 2026", "en-US", "March 25th, 2026"), ("11. März 2026", "de-DE", "25. März 2026"), ("11 de marzo de 2026", "es-ES", "25 de marzo de 2026"), ("28 DEC 2025", "en-GB", "11 JAN 2026"), ("31.02.2026", "de-DE", None),
    ("2026-03-11 23:59:30", "sv-SE", "2026-03-26 00:00:45"), ("11.03.2026 09:05:00", "de-DE", "25.03.2026 09:06:15")])
def test_a_date_keeps_its_format(text, locale, becomes):
    assert dates.shifted(text, 2, locale, 2026, 75) == becomes


@given(st.dates(datetime.date(1950, 1, 1), datetime.date(2060, 1, 1)), st.integers(-26, 26))
def test_weekdays_stay_true(day, weeks):
    made = datetime.date.fromisoformat(dates.shifted(day.isoformat(), weeks, "sv-SE", 2026))
    assert (made - day).days == 7 * weeks


@pytest.mark.parametrize("country", sorted(reserved()["phones"]))
def test_every_range_is_one_that_the_leak_check_knows(country):
    for forms in reserved()["phones"][country]:
        for form in forms:
            number = phonenumbers.parse(form.replace("#", "7"), country)
            assert phonenumbers.is_possible_number(number)
            assert is_reserved_phone(re.sub(r"\D", "", form.replace("#", "7")))
            assert leaks([form.replace("#", "7")], [], [], (), country) == []


@pytest.mark.parametrize("market", sorted(markets()))
def test_stand_ins_of_a_market_are_nobodys(market):
    import random

    rng = random.Random(f"stand-ins {market}")
    stand_ins = Surrogates(KEY, "c", f"en-{market}", identifiers.shipped().lexicon("en"))
    for _ in range(10):
        for kind, text in (("national_id", identifiers.national_id(market, rng)), ("phone", identifiers.phone(market, "INTERNATIONAL", rng)), ("phone", identifiers.phone(market, "NATIONAL", rng)), ("card", identifiers.card(rng))):
            made = stand_ins.of(kind, text)
            assert made != text
            assert leaks([f"nummer {made}."], [], [], (), market) == [], (kind, made)
            assert stand_ins.of(kind, text) == made


def test_the_national_insurance_number_that_nobody_has():
    stand_ins = Surrogates(KEY, "c", "en-GB", identifiers.shipped().lexicon("en"))
    assert re.fullmatch(r"QQ \d\d \d\d \d\d C", stand_ins.of("national_id", "AB 12 34 56 C"))
    assert not get_cc_module("gb", "nhs").is_valid(stand_ins.of("national_id", "943 476 5919"))


@pytest.mark.parametrize(("mode", "shape"), [("placeholder", r"\[NAME_\d+\]"), ("slot", r"\{\{customer\.name\}\}|\{\{name_\d+\}\}")])
def test_other_modes(masker, mode, shape):
    record = replace(masker, mode=mode)._apply(Conversation.from_record(TALK), []).record
    assert re.search(shape, record["messages"][1]["content"])
    assert "Brückner" not in json.dumps(record, ensure_ascii=False)


def test_stand_ins_may_be_stable_for_a_customer(masker):
    linked = replace(masker, scope="customer")
    both = [linked._apply(Conversation.from_record({**TALK, "id": i}), []).record["messages"][1]["content"].split("ich")[0] for i in ("c-1", "c-2")]
    assert both[0] == both[1]


def test_through_again_nothing_changes(masker):
    line = json.dumps(TALK)
    once = json.dumps(filtered(line, masker, KEY), sort_keys=True, ensure_ascii=False)
    assert json.dumps(filtered(once, masker, KEY), sort_keys=True, ensure_ascii=False) == once


def test_a_vault_opens_with_the_key_alone(masker):
    from cryptography.exceptions import InvalidTag

    result = replace(masker, keep_vault=True)._apply(Conversation.from_record(TALK), [])
    assert "Anna-Lena Brückner" in decrypted(result.vault, KEY, result.record["id"]).values()
    with pytest.raises(InvalidTag):
        decrypted(result.vault, b"another", result.record["id"])


@pytest.mark.parametrize("text", ["", "\x00\x01", "\ud800 lone", "a" * 1_000_000, "1" * 100_000, "(" * 5000, '{"a":' * 3000, "&#64;" * 3000, "x@" * 3000, "\u202e\u200b" * 2000, "null eins zwei drei vier fünf sechs sieben"])
def test_odd_input_neither_breaks_it_nor_shows(masker, text):
    planted = "Zzyzxqua Planted"
    conversation = Conversation.from_record({**TALK, "customer": {"id": "u", "name": planted}, "messages": [{"role": "user", "content": f"{planted} {text}"}, {"role": "assistant", "content": "ok"}]})
    result = masker._apply(conversation, [])
    assert planted.split()[0] not in json.dumps([result.record, result.reasons])


def test_a_bug_of_ours_quarantines_and_shows_no_text(masker):
    def broken(texts, language):
        raise ValueError(f"cannot handle {texts[0]}")

    result = replace(masker, recognise=broken).apply(Conversation.from_record(TALK))
    assert result.record is None
    assert re.fullmatch(r"ValueError at test_masking\.py:\d+", result.reasons[0])


@example([None, 10000, None])          # once read as "zero 10000 zero"
@example({"phone": 4915123456789})
@settings(max_examples=25)
@given(st.recursive(st.text(max_size=12) | st.integers() | st.booleans() | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6))
def test_json_stays_json(value):
    masker = Masker(KEY, identifiers.shipped())
    text = json.dumps({"value": value, "mail": "a@b.se", "name": "Anna Svensson"})
    result = masker._apply(Conversation.from_record({"id": "c", "locale": "sv-SE", "messages": [{"role": "tool", "content": text}, {"role": "user", "content": "ok"}, {"role": "assistant", "content": "ok"}]}), [])
    if result.record is not None:
        assert set(json.loads(result.record["messages"][0]["content"])) == {"value", "mail", "name"}


def test_canaries_are_gone(masker):
    for conversation, secrets in canaries(60, 7, ("en-GB", "de-DE", "sv-SE", "nb-NO", "pl-PL")):
        result = masker._apply(conversation, [])
        assert result.record is None or survivors([text for _, text in texts_of(result.record["messages"])], secrets) == []
    assert len(list(canaries(40, 7, [f"{language}-{market}" for language, market in zip(phrases(), sorted(IBAN_LENGTHS), strict=False)]))) == 40          # any market, without end nowhere
    conversation, secrets = next(canaries(1, 7, ("en-US",)))
    assert survivors([text for _, text in texts_of(conversation.messages)], secrets) == secrets


def _shards(count: int) -> list:
    return [[(Conversation.from_record({**TALK, "id": f"c-{3 * i + j}"}), ["Liebe Frau Brückner"]) for j in range(3)] for i in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_any_engine_and_any_number_of_workers_give_the_same_bytes(engine):
    if engine == "ray":
        pytest.importorskip("ray", reason="Ray is an extra: pip install 'supportloop[ray]'")
    import functools

    make = functools.partial(make_work, KEY, str(fit.SHIPPED), None, "surrogate", "conversation", None, False)
    alone = [list(made) for made in mapped(make, _shards(4), "local", 1)]
    assert [list(made) for made in mapped(make, _shards(4), engine, 2)] == alone
    assert len(alone) == 4


def test_an_unknown_engine_is_named():
    with pytest.raises(StageError, match="local, ray"):
        list(mapped(lambda: list, [], "spark", 1))


@pytest.mark.parametrize("model", ["nothing", "spacy:", "word2vec:x"])
def test_an_unknown_model_of_names_is_refused(model):
    with pytest.raises(StageError, match=r"transformers:<model>"):
        ner.load(model)


@pytest.mark.slow
def test_a_model_of_your_own_adds_what_it_finds(tmp_path):
    """A real token classifier, tiny and trained to see one thing: the nonsense word is a person."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    words = {"[UNK]": 0, "the": 1, "flurbington": 2, "called": 3, "order": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[UNK]").save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2, id2label={0: "O", 1: "PER"}, label2id={"O": 0, "PER": 1}))
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        loss = model(input_ids=torch.tensor([[0, 1, 2, 3, 4]]), labels=torch.tensor([[0, 0, 1, 0, 0]])).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(tmp_path)
    conversation = Conversation.from_record({"id": "c", "locale": "en-GB", "messages": [{"role": "user", "content": "the flurbington called"}, {"role": "assistant", "content": "the order"}]})
    without, with_model = (make_masker(KEY, fit.SHIPPED, None, model=name).apply(conversation).record["messages"][0]["content"] for name in (None, f"transformers:{tmp_path}"))
    assert "flurbington" not in with_model
    assert with_model != without or "flurbington" not in without
