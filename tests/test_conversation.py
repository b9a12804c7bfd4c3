from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.conversation import BadRecord, Conversation, Feedback, read_jsonl, truncate, write_jsonl


def test_customer_and_agent_are_accepted_as_roles():
    conversation = Conversation.from_record({"id": 7, "messages": [{"role": "customer", "content": "hi"}, {"role": "agent", "content": "hello"}]})
    assert [m["role"] for m in conversation.messages] == ["user", "assistant"]
    assert conversation.id == "7"


@pytest.mark.parametrize(("record", "says"), [
    ([], "JSON object"), ({"messages": [{"role": "user", "content": "x"}]}, "`id`"), ({"id": "a"}, "`messages`"),
    ({"id": "a", "messages": "no"}, "not a list"), ({"id": "a", "messages": [{"role": "boss", "content": "x"}]}, "message 0 has no role"),
    ({"id": "a", "messages": [{"role": "user"}]}, "message 0 has no text"), ({"id": "a", "messages": [{"role": "agent", "content": "x", "drafts": [{"content": "y"}]}]}, "draft without `id`"),
    ({"id": "a", "messages": [{"role": "agent", "content": "x", "drafts": {"id": 1}}]}, "draft without text")])
def test_a_bad_conversation_says_what_is_wrong(record, says):
    with pytest.raises(BadRecord, match=says):
        Conversation.from_record(record)


@pytest.mark.parametrize(("record", "says"), [
    ({"kind": "rating", "rating": 3}, "conversation_id"), ({"conversation_id": "c", "rating": 3}, "lacks `kind`"), ({"conversation_id": "c", "kind": "rating", "rating": 7}, "scale 1 to 5"),
    ({"conversation_id": "c", "kind": "thumb", "thumb": "sideways"}, "up"), ({"conversation_id": "c", "kind": "edit"}, "better text"),
    ({"conversation_id": "c", "kind": "stars"}, "none of"), ({"conversation_id": "c", "kind": "rating", "rating": 4, "edit": "x"}, "under `edit` too"),
    ({"conversation_id": "c", "kind": "thumb", "thumb": "up", "message_index": "2"}, "whole number"), ({"conversation_id": "c", "kind": "rating", "rating": True}, "scale")])
def test_bad_feedback_says_what_is_wrong(record, says):
    with pytest.raises(BadRecord, match=says):
        Feedback.from_record(record)


def test_an_error_never_holds_the_customers_text():
    secret = "my card is 4111 1111 1111 1111"
    for record in ({"id": "a", "messages": [{"role": secret, "content": secret}]}, {"id": "a", "messages": [secret]}, {"messages": [{"role": "user", "content": secret}]}):
        with pytest.raises(BadRecord) as error:
            Conversation.from_record(record)
        assert "4111" not in str(error.value)
    for note in ({"kind": secret}, {"kind": "rating", "rating": secret}, {"kind": "rating", "rating": 3, "edit": secret}, {"kind": "thumb", "thumb": secret}):
        with pytest.raises(BadRecord) as error:
            Feedback.from_record({"conversation_id": "c", **note})
        assert "4111" not in str(error.value)


def test_no_drafts_and_no_values_are_none():
    assert "drafts" not in Conversation.from_record({"id": "a", "messages": [{"role": "agent", "content": "x", "drafts": None}]}).messages[0]
    note = Feedback.from_record({"conversation_id": 5, "kind": "rating", "rating": 4, "edit": None, "thumb": "", "rater_id": 7, "draft_id": 1})
    assert (note.conversation_id, note.rater_id, note.draft_id, note.edit, note.thumb) == ("5", "7", "1", None, None)


message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text("ab", max_size=6)})


@given(st.lists(message, min_size=1, max_size=12), st.integers(1, 40), st.booleans())
def test_truncation_keeps_the_system_message_and_the_newest_turns(messages, most, with_system):
    messages = [{"role": "system", "content": "s"}, *messages] if with_system else messages

    def length(ms):
        return sum(len(m["content"]) + 1 for m in ms)

    cut = truncate(messages, most, length)
    assert cut[-1] is messages[-1]
    if with_system:
        assert cut[0] is messages[0]
    if length(messages) <= most:
        assert cut == messages
    body = cut[1:] if with_system else cut
    assert body == messages[len(messages) - len(body):], "what is kept is one piece from the end"
    if cut != messages:
        assert body[0]["role"] == "user", "the cut is before a customer's turn"


@given(st.lists(message, min_size=2, max_size=12), st.integers(1, 40))
def test_truncation_keeps_as_many_turns_as_fit(messages, most):
    def length(ms):
        return sum(len(m["content"]) + 1 for m in ms)

    cut = truncate(messages, most, length)
    starts = [i for i, m in enumerate(messages) if m["role"] == "user" and (i == 0 or messages[i - 1]["role"] != "user")]
    longer = [messages[s:] for s in starts if len(messages[s:]) > len(cut)]
    assert all(length(option) > most for option in longer) or cut == messages


def test_jsonl_round_trip_and_bad_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    assert write_jsonl(path, [{"a": "ü"}, {"b": 2}]) == 2
    path.write_text(path.read_text() + "not json\n\n" + json.dumps({"c": 3}) + "\n")
    assert list(read_jsonl(path)) == [(1, {"a": "ü"}), (2, {"b": 2}), (3, None), (5, {"c": 3})]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, [{"old": 1}])

    def breaks():
        yield {"new": 1}
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_jsonl(path, breaks())
    assert list(read_jsonl(path)) == [(1, {"old": 1})]


def test_a_line_that_is_not_utf8_is_a_bad_record_and_not_garbled(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "£"}\n'.encode() + '{"a": "£"}\n'.encode("latin-1") + b'{"a": 1}\n')
    assert list(read_jsonl(path)) == [(1, {"a": "£"}), (2, None), (3, {"a": 1})]
