from __future__ import annotations

import inspect
import json

import pytest

from data_prep.ingest import zendesk
from data_prep.ingest.files import plain

SECRET = "my card is 4111 1111 1111 1111"
USERS = [{"id": 1, "name": "Ida Holm", "email": "ida@example.com", "phone": "+4685550123", "role": "end-user", "locale": "sv-SE"},
         {"id": 2, "name": "Karl Agent", "email": "karl@example.com", "role": "agent"}, {"id": 3, "name": "Help Bot", "role": "bot"},
         {"id": 4, "name": "Eva Chief", "role": "admin"}]


def comment(number: int, author: int, text: str, minute: int, *, public: bool = True, channel: str = "email", **source) -> dict:
    return {"id": number, "type": "Comment", "author_id": author, "public": public, "plain_body": text, "body": text, "created_at": f"2026-03-01T09:{minute:02d}:00Z",
            "via": {"channel": channel, "source": {"from": {}, "to": {}, "rel": None, **source}}, "metadata": {}}


def ticket(number: int, comments: list[dict], **more) -> dict:
    return {"id": number, "subject": "Lamp", "requester_id": 1, "assignee_id": 2, "created_at": "2026-03-01T09:00:00Z", "status": "closed", "tags": [],
            "via": {"channel": "email"}, "custom_fields": [{"id": 9, "value": SECRET}], "comments": comments, **more}


def spoken(conversation) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in conversation.messages]


# --------------------------------------------------------------------------------------------------------------- Zendesk


def test_zendesk_keeps_the_talk_and_counts_the_rest(source):
    reader = source("zendesk", [ticket(7, [
        comment(1, 1, "where is my lamp?", 0),
        comment(2, -1, "We got your message.", 1, channel="rule", rel="trigger"),
        comment(3, 3, "Have you read our help pages?", 2, channel="answer_bot_for_web_widget"),
        comment(4, 2, "customer is difficult", 3, public=False),
        comment(5, 2, "It arrives on Friday.", 4),
        comment(6, 99, "I was copied in", 5),
        comment(7, 1, " ", 6),
        comment(8, 2, "(09:01:10) Ida: hi\n(09:01:20) Karl: hello", 7, channel="chat"),
        comment(9, 1, "thanks", 8, channel="answer_bot_for_web_widget")])], USERS)
    conversation, = reader.conversations()
    assert spoken(conversation) == [("user", "where is my lamp?"), ("assistant", "It arrives on Friday."), ("user", "thanks")]
    assert {k: v for k, v in reader.counts.items() if k.startswith("messages")} == {
        "messages: an automatic reply": 1, "messages: a bot's turn": 1, "messages: a private comment": 1, "messages: an author whose role is not known": 1,
        "messages: a comment without text": 1, "messages: a chat transcript in one comment": 1}
    assert (conversation.id, conversation.locale, conversation.started_at, conversation.channel) == ("7", "sv-SE", "2026-03-01T09:00:00Z", "email")
    assert conversation.customer == {"id": 1, "name": "Ida Holm", "email": "ida@example.com", "phone": "+4685550123"}
    assert [agent.get("name") for agent in conversation.agents] == ["Karl Agent", "Help Bot", None]
    assert [m.get("author_id") for m in conversation.messages] == [None, "2", None]
    assert "4111" not in json.dumps(conversation.to_record()), "custom fields are nobody's words"


def test_zendesk_satisfaction_is_a_thumb_of_the_customer(source):
    talk = [comment(1, 1, "hi", 0), comment(2, 2, "hello", 1)]
    reader = source("zendesk", [ticket(i, talk, satisfaction_rating={"score": score, "comment": SECRET}) for i, score in enumerate(["good", "bad", "offered"], 1)], USERS)
    assert [(f.conversation_id, f.kind, f.thumb, f.rater_id, f.message_index) for f in reader.feedback(lambda i: True)] == [
        ("1", "thumb", "up", "customer", None), ("2", "thumb", "down", "customer", None)]


def test_zendesk_merged_tickets_are_one_conversation(source):
    first = ticket(10, [comment(1, 1, "my lamp is broken", 0), comment(2, 2, "Please send a photo.", 4),
                        comment(3, 2, "Request #11 was closed and merged into this request.", 6, public=False, rel="merge", **{"from": {"ticket_ids": [11]}}),
                        comment(4, 2, "Thank you, a new one is on its way.", 7)])
    second = ticket(11, [comment(20, 1, "here is the photo", 5), comment(1, 1, "my lamp is broken", 0),
                         comment(21, 2, "This request was closed and merged into request #10 \"Lamp\".", 6)], tags=["closed_by_merge"])
    for order in ([first, second], [second, first]):
        reader = source("zendesk", order, USERS)
        conversation, = reader.conversations()
        assert [text for _, text in spoken(conversation)] == ["my lamp is broken", "Please send a photo.", "here is the photo", "Thank you, a new one is on its way."]
        assert reader.counts["messages: a merge notice"] == 2
        assert reader.counts["conversations: merged into another ticket, and read there"] == 1
        assert reader.counts["conversations bad"] == 0


def test_zendesk_merges_in_a_chain_end_in_the_last_and_one_without_its_target_stays(source):
    def closed(number, into, text):
        return ticket(number, [comment(number * 10, 1, text, number), comment(number * 10 + 1, 2, f"This request was closed and merged into request #{into}.", 30)],
                      tags=["closed_by_merge"])

    lone = closed(4, 999, "alone")
    lone["comments"].insert(1, comment(500, 2, "an answer", 20))
    reader = source("zendesk", [closed(1, 2, "one"), closed(2, 3, "two"), ticket(3, [comment(30, 1, "three", 3), comment(31, 2, "an answer", 40)]), lone], USERS)
    assert {c.id: [t for _, t in spoken(c)] for c in reader.conversations()} == {"3": ["one", "two", "three", "an answer"], "4": ["alone", "an answer"]}


def test_zendesk_a_customer_is_excluded_out_of_a_merged_ticket_too(source, tmp_path):
    (tmp_path / "out.txt").write_text("77")
    kept = ticket(10, [comment(1, 1, "hi", 0), comment(2, 2, "hello", 4)])
    second = ticket(11, [comment(20, 77, "me too", 1), comment(21, 2, "merged into request #10", 6)], tags=["closed_by_merge"], requester_id=77)
    reader = source("zendesk", [kept, second, {**kept, "id": 12}], USERS, exclude_customers=str(tmp_path / "out.txt"))
    assert [c.id for c in reader.conversations()] == ["12"]


def test_zendesk_a_merge_that_only_its_target_tells_of_loses_nothing(source):
    told = comment(3, 2, "Merged.", 6, rel="merge", **{"from": {"ticket_ids": [11, 12]}})
    tickets = [ticket(10, [comment(1, 1, "hi", 0), comment(2, 2, "hello", 4), told]), ticket(11, [comment(20, 1, "again", 1), comment(21, 2, "yes?", 2)]),
               ticket(12, [comment(30, 1, "and again", 5)], tags=["closed_by_merge"])]
    assert {c.id: [t for _, t in spoken(c)] for c in source("zendesk", tickets, USERS).conversations()} == {"10": ["hi", "hello", "and again"], "11": ["again", "yes?"]}


def test_zendesk_merges_in_a_circle_end(source):
    def closed(number, into):
        return ticket(number, [comment(number, 1, "hi", 0), comment(9 + number, 2, "hello", 1),
                               comment(90 + number, 2, f"merged into request #{into}", 2)], tags=["closed_by_merge"])

    assert [c.id for c in source("zendesk", [closed(1, 2), closed(2, 1)], USERS).conversations()] == ["1", "2"]


def test_zendesk_pages_and_people_inside_the_ticket(source):
    talk = [comment(1, 1, "hi", 0), comment(2, 2, "hello", 1)]
    reader = source("zendesk", [{"tickets": [ticket(1, talk), ticket(2, talk)], "users": USERS, "end_of_stream": True}], suffix=".json")
    assert [c.customer["name"] for c in reader.conversations()] == ["Ida Holm", "Ida Holm"]
    reader = source("zendesk", [ticket(1, talk, requester=USERS[0], assignee=USERS[1])])
    assert next(reader.conversations()).customer["email"] == "ida@example.com"
    reader = source("zendesk", [ticket(1, [*talk, comment(3, 55, "who am I?", 2)])])
    assert spoken(next(reader.conversations())) == [("user", "hi"), ("assistant", "hello")], "with no people known, requester and assignee are"


def test_zendesk_reads_the_latest_of_a_ticket_that_comes_again(source):
    talk = [comment(1, 1, "hi", 0), comment(2, 2, "hello", 1)]
    reader = source("zendesk", [ticket(1, talk), ticket(1, [*talk, comment(3, 1, "bye", 2)])], USERS)
    assert len(next(reader.conversations()).messages) == 3
    assert reader.counts["conversations bad"] == 0


def test_zendesk_html_is_read_where_there_is_nothing_plainer(source):
    html = {**comment(1, 1, "", 0), "html_body": "<div><p>Hello,</p><p>my lamp<br>is &lt;broken&gt;</p></div>"}
    conversation, = source("zendesk", [ticket(1, [html, comment(2, 2, "a&nbsp;b", 1)])], USERS).conversations()
    assert [text for _, text in spoken(conversation)] == ["Hello,\nmy lamp\nis <broken>", "a b"]


@pytest.mark.parametrize(("record", "says"), [
    (f'{{"id": 1, "comments": "{SECRET}', "not JSON"), ([SECRET], "expected a ticket"), ({"subject": SECRET, "comments": []}, "lacks `id`"),
    ({"id": 5, "description": SECRET}, "export the tickets with their comments"), (ticket(6, [comment(1, 1, SECRET, 0)]), "one side only: user"),
    (ticket(6, []), "no message that a customer"), (ticket(6, ["x", None]), "no message that a customer"),
    (ticket(6, [{"id": 1, "via": 3, "author_id": None, "public": True, "body": SECRET, "created_at": "soon"}]), "no message that a customer")])
def test_zendesk_what_cannot_be_used_has_a_reason_without_text(source, record, says):
    good = ticket(1, [comment(1, 1, "hi", 0), comment(2, 2, "hello", 1)])
    reader = source("zendesk", [good, record], USERS)
    assert [c.id for c in reader.conversations()] == ["1"]
    assert any(says in reason for reason in reader.counts), reader.counts
    assert "4111" not in json.dumps([reader.bad, dict(reader.counts)])


def test_zendesk_streams(source):
    """One conversation is made at a time: the second ticket is looked at only when it is asked for."""
    made = []
    reader = source("zendesk", [ticket(i, [comment(1, 1, "hi", 0), comment(2, 2, "hello", 1)]) for i in range(1, 50)], USERS)
    stream = zendesk.conversations(reader.data, "")
    assert inspect.isgenerator(stream)
    original = zendesk._conversation
    zendesk._conversation = lambda *given: made.append(given[0]) or original(*given)
    try:
        next(stream)
    finally:
        zendesk._conversation = original
    assert made == ["1"]


# -------------------------------------------------------------------------------------------------------------- Intercom


CONTACT = {"type": "user", "id": "c9", "name": "Ida Holm", "email": "ida@example.com"}
ADMIN = {"type": "admin", "id": "274", "name": "Karl Agent", "email": "karl@example.com"}


def part(kind: str, author: dict, body: str | None, at: int = 0, **more) -> dict:
    return {"type": "conversation_part", "part_type": kind, "author": author, "body": body, "created_at": 1772355600 + at, **more}


def chat(parts: list, **more) -> dict:
    return {"type": "conversation", "id": "471", "created_at": 1772355600, "custom_attributes": {"note": SECRET}, "statistics": {}, "teammates": {"admins": []},
            "source": {"type": "conversation", "delivered_as": "customer_initiated", "author": CONTACT, "body": "<p>Where is my lamp?</p>"},
            "conversation_parts": {"type": "conversation_part.list", "conversation_parts": parts, "total_count": len(parts)}, **more}


def test_intercom_keeps_the_talk_and_counts_the_rest(source):
    reader = source("intercom", [chat([
        part("comment", {"type": "bot", "id": "b1", "name": "Fin"}, "<p>Have you read our help pages?</p>", 5),
        part("comment", {"type": "admin", "id": "1", "name": "Operator", "email": "operator+ab1@intercom.io"}, "<p>You will get replies here.</p>", 6),
        part("note", ADMIN, "<p>difficult</p>", 7), part("assignment", ADMIN, None, 8),
        part("comment", ADMIN, "<p>It comes on:</p><ul><li>Friday, or</li><li>Saturday</li></ul>", 9),
        part("comment", CONTACT, None, 10, redacted=True), part("attribute_updated_by_admin", ADMIN, "<p>x</p>", 11),
        part("close", ADMIN, "<p>Bye&nbsp;then!</p>", 12)])])
    conversation, = reader.conversations()
    assert spoken(conversation) == [("user", "Where is my lamp?"), ("assistant", "It comes on:\n- Friday, or\n- Saturday"), ("assistant", "Bye then!")]
    assert {k: v for k, v in reader.counts.items() if k.startswith("messages")} == {
        "messages: a bot's turn": 2, "messages: a private note": 1, "messages: a redacted message": 1, "messages: an event with a text of its own": 1}
    assert (conversation.started_at, conversation.messages[1]["at"]) == ("2026-03-01T09:00:00Z", "2026-03-01T09:00:09Z")
    assert conversation.customer == {"id": "c9", "name": "Ida Holm", "email": "ida@example.com"}
    assert {"name": "Karl Agent", "id": "274", "email": "karl@example.com"} in conversation.agents
    assert "4111" not in json.dumps(conversation.to_record())


def test_intercom_what_a_campaign_began_is_no_agents_message(source):
    began = {"type": "conversation", "delivered_as": "automated", "author": ADMIN, "body": "<p>Try our new lamp!</p>"}
    reader = source("intercom", [chat([part("comment", CONTACT, "<p>is it blue?</p>", 5), part("comment", ADMIN, "<p>Yes.</p>", 6)], source=began)])
    assert spoken(next(reader.conversations())) == [("user", "is it blue?"), ("assistant", "Yes.")]
    assert reader.counts["messages: an automatic reply"] == 1


def test_intercom_ratings_are_the_customers_of_the_whole_conversation(source):
    talk = [part("comment", ADMIN, "<p>On Friday.</p>", 5)]
    reader = source("intercom", [chat(talk, conversation_rating={"rating": 2, "remark": SECRET, "created_at": 1772355700, "contact": {}, "teammate": {}}),
                                 chat(talk, id="2", conversation_rating={"rating": None})])
    feedback, = reader.feedback(lambda i: True)
    assert (feedback.conversation_id, feedback.kind, feedback.rating, feedback.rater_id, feedback.message_index) == ("471", "rating", 2, "customer", None)


@pytest.mark.parametrize(("record", "says"), [
    ("{", "not JSON"), ([SECRET], "expected a conversation"), (chat([], id=None), "lacks `id`"), ({"id": "5", "source": {"body": SECRET}}, "retrieve each conversation"),
    (chat([], id="6"), "one side only: user"), (chat([None, "x", {"part_type": "comment", "author": "x", "body": SECRET}], id="6"), "author whose role is not known"),
    (chat([], id="7", source=None), "no message that a customer")])
def test_intercom_what_cannot_be_used_has_a_reason_without_text(source, record, says):
    reader = source("intercom", [chat([part("comment", ADMIN, "<p>On Friday.</p>", 5)]), record])
    assert [c.id for c in reader.conversations()] == ["471"]
    assert any(says in reason for reason in reader.counts), reader.counts
    assert "4111" not in json.dumps([reader.bad, dict(reader.counts)])


@pytest.mark.parametrize(("html", "text"), [
    ("<p>a</p><p>b</p>", "a\nb"), ("a<br/>b<br>c", "a\nb\nc"), ("<ul><li>x</li><li>y</li></ul>z", "- x\n- y\nz"), ("<p>a &amp; b &lt;c&gt; &#8364;5</p>", "a & b <c> €5"),
    ("<style>p{}</style><script>x()</script>a", "a"), ("<a href='https://example.com'>here</a> it  is", "here it is"), ("plain 1 < 2", "plain 1 < 2"), ("<p></p><br>", ""), ("<b>open", "open")])
def test_html_becomes_the_text_that_was_read(html, text):
    assert plain(html) == text
