from __future__ import annotations

import gzip
import inspect
import json

import pyarrow
import pyarrow.parquet
import pytest

from conf.load import load_config
from data_prep import prepare
from data_prep.artifacts import StageError, stage_dir, stage_output
from data_prep.conversation import read_jsonl, write_jsonl
from data_prep.ingest import Reader, zendesk
from data_prep.ingest.actions import merge
from data_prep.ingest.files import moment, plain, stamp

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


@pytest.fixture
def source(tmp_path):
    """A reader of a format over records that are written for it; further data.* settings by name."""
    def make(name: str, records: list, users: list | None = None, suffix: str = ".jsonl", **data):
        path = tmp_path / f"export{suffix}"
        if suffix == ".json":
            path.write_text(json.dumps(records[0] if len(records) == 1 else records))
        else:
            path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
        config = load_config([f"data={name}", f"data.conversations={path}", f"run_dir={tmp_path}/run"])
        if users:
            write_jsonl(tmp_path / "users.jsonl", users)
            config.data.users = str(tmp_path / "users.jsonl")
        for key, value in {"max_bad_fraction": 1.0, **data}.items():
            config.data[key] = value
        return Reader(config)

    return make


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


# ---------------------------------------------------------------------------------------------------- CSV, Parquet, jsonl


HEADER = "ticket;who;message;when;mail"
COLUMNS = {"conversation_id": "ticket", "role": "who", "content": "message", "at": "when", "customer_email": "mail"}


@pytest.fixture
def table(tmp_path):
    def make(raw: bytes, name: str = "chats.csv", columns: dict | None = None, **data):
        path = tmp_path / name
        path.write_bytes(raw)
        config = load_config(["data=csv", f"data.conversations={path}", f"run_dir={tmp_path}/run"])
        config.data.columns = columns or COLUMNS
        for key, value in {"max_bad_fraction": 1.0, **data}.items():
            config.data[key] = value
        return Reader(config)

    return make


ROWS = [HEADER, "2;client;hello;2026-03-01 10:00;b@example.com", "1;client;\"my \"\"lamp\"\"; is\nbroken\";2026-03-01 09:00;a@example.com",
        "2;Agent ;hi;2026-03-01 10:01;", "1;bot;read the pages;2026-03-01 09:01;", "1;agent;\"Grüße, Karl\";2026-03-01 09:02;"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_csv_rows_that_stand_apart_become_conversations(table, encoding):
    reader = table("\r\n".join(ROWS).encode(encoding))
    made = {c.id: c for c in reader.conversations()}
    assert spoken(made["1"]) == [("user", 'my "lamp"; is\nbroken'), ("assistant", "Grüße, Karl")]
    assert spoken(made["2"]) == [("user", "hello"), ("assistant", "hi")]
    assert made["1"].customer == {"email": "a@example.com"}
    assert made["1"].started_at == "2026-03-01T09:00:00Z"
    assert reader.counts["messages: a bot's turn"] == 1


@pytest.mark.parametrize(("delimiter", "name"), [(",", "x.csv"), ("\t", "x.tsv"), ("|", "x.csv"), (";", "x.csv.gz")])
def test_csv_finds_its_delimiter(table, delimiter, name):
    raw = "\n".join([HEADER.replace(";", delimiter), delimiter.join(["1", "client", "a", "", ""]), delimiter.join(["1", "agent", "b", "", ""])]).encode()
    reader = table(gzip.compress(raw) if name.endswith(".gz") else raw, name)
    assert [spoken(c) for c in reader.conversations()] == [[("user", "a"), ("assistant", "b")]]


def test_csv_order_is_by_time_where_each_row_has_one(table):
    late_first = [HEADER, "1;agent;b;2026-03-01T09:05:00+02:00;", "1;client;a;2026-03-01T07:00:00Z;"]
    assert spoken(next(table("\n".join(late_first).encode()).conversations())) == [("user", "a"), ("assistant", "b")]
    assert spoken(next(table("\n".join([*late_first, "1;client;c;;"]).encode()).conversations()))[0] == ("assistant", "b")


def test_csv_what_cannot_be_used_has_a_reason_without_text(table):
    reader = table("\n".join([*ROWS, f"3;boss;{SECRET};;", f"4;client;{SECRET}", f";client;{SECRET};;"]).encode())
    assert {c.id for c in reader.conversations()} == {"1", "2"}
    reasons = " / ".join(bad["reason"] for bad in reader.bad)
    assert "a role that data.roles does not know" in reasons
    assert "a row of 3 columns where there are 5" in reasons
    assert "1 rows lack the conversation's id" in reasons
    assert reader.counts["conversations bad"] == 3
    assert "4111" not in json.dumps([reader.bad, dict(reader.counts)])


@pytest.mark.parametrize(("columns", "data", "says"), [
    ({**COLUMNS, "customer_name": "nme"}, {}, r"has no column data.columns.customer_name=nme"), ({**COLUMNS, "custmer_name": "mail"}, {}, r"custmer_name is no column of ours"),
    ({**COLUMNS, "role": None}, {}, r"data.columns.role must be given"), (COLUMNS, {"roles": {"client": "buyer"}}, r"data.roles has the role 'buyer'")])
def test_a_wrong_mapping_is_said(table, columns, data, says):
    with pytest.raises(StageError, match=says):
        list(table("\n".join(ROWS).encode(), columns=columns, **data).conversations())


def test_a_file_that_is_no_table_is_said_without_its_text(table):
    for name in ("x.parquet", "x.csv.gz"):
        with pytest.raises(StageError) as error:
            list(table(SECRET.encode(), name).conversations())
        assert "4111" not in str(error.value)


def test_parquet_is_read_like_csv(table, tmp_path):
    rows = [line.split(";") for line in ["2;client;hello;2026-03-01T10:00:00;", "1;client;a;2026-03-01T09:00:00;x@example.com", "2;agent;hi;2026-03-01T10:01:00;", "1;agent;b;2026-03-01T09:02:00;"]]
    columns = dict(zip(HEADER.split(";"), map(list, zip(*rows, strict=True)), strict=True))
    columns |= {"ticket": [int(v) for v in columns["ticket"]], "when": [moment(v) for v in columns["when"]], "unused": [SECRET] * 4}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "made.parquet")
    made = {c.id: c for c in table((tmp_path / "made.parquet").read_bytes(), "chats.parquet").conversations()}
    assert spoken(made["1"]) == [("user", "a"), ("assistant", "b")]
    assert made["2"].started_at == "2026-03-01T10:00:00Z"


@pytest.mark.parametrize("as_text", [True, False])
def test_our_own_records_come_as_parquet_too(config, tmp_path, as_text):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "drafts": [{"id": "d", "content": "c"}]}]
    records = [{"id": str(i), "messages": json.dumps(messages) if as_text else messages, "customer": {"id": "u"}, "locale": None} for i in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "c.parquet")
    config.data.format, config.data.conversations = "jsonl", str(tmp_path / "c.parquet")
    made = list(Reader(config).conversations())
    assert [c.id for c in made] == ["0", "1", "2"]
    assert made[0].messages == messages, "a key that a record had not is not there as null"
    assert (made[0].customer, made[0].locale) == ({"id": "u"}, "en")


# ------------------------------------------------------------------------------------- actions, excluded customers, age


def talk(identity: str, times: tuple = (0, 2), **more) -> dict:
    messages = [{"role": role, "content": role, **({} if at is None else {"at": f"2026-03-01T09:{at:02d}:00Z"})} for role, at in zip(("user", "assistant", "user", "assistant"), times, strict=False)]
    return {"id": identity, "messages": messages, "started_at": "2026-03-01T09:00:00Z", **more}


def action(identity: str, minute: int, tool: str = "issue_refund", **more) -> dict:
    return {"conversation_id": identity, "at": f"2026-03-01T09:{minute:02d}:00Z", "tool": tool, "arguments": {"amount": 4}, "result": {"ok": True}, **more}


def test_actions_stand_where_they_happened(source, tmp_path):
    write_jsonl(tmp_path / "actions.jsonl", [action("a", 5, "second"), action("a", 1, "first"), action("gone", 1)])
    reader = source("jsonl", [talk("a"), talk("b")], actions=str(tmp_path / "actions.jsonl"))
    first, second = reader.conversations()
    assert [m["role"] for m in first.messages] == ["user", "assistant", "tool", "assistant", "assistant", "tool"]
    call, result = first.messages[1]["tool_calls"][0], first.messages[2]
    assert (call["function"], result["tool_call_id"], result["content"]) == ({"name": "first", "arguments": '{"amount": 4}'}, call["id"], '{"ok":true}')
    assert [m["role"] for m in second.messages] == ["user", "assistant"]
    assert reader.counts["actions merged"] == 2
    assert reader.counts["actions: for a conversation that is not in the archive or was dropped"] == 1


def test_feedback_follows_its_message_when_actions_move_it(source, tmp_path):
    write_jsonl(tmp_path / "actions.jsonl", [action("a", 1)])
    write_jsonl(tmp_path / "feedback.jsonl", [{"conversation_id": "a", "kind": "rating", "rating": 4, "rater_id": "r", "message_index": 1}])
    reader = source("jsonl", [talk("a")], actions=str(tmp_path / "actions.jsonl"), feedback=str(tmp_path / "feedback.jsonl"))
    conversation, = reader.conversations()
    note, = reader.feedback(lambda i: True)
    assert conversation.messages[note.message_index]["content"] == "assistant"


@pytest.mark.parametrize(("times", "minute", "order"), [
    ((0, 2), 2, "ucta"), ((0, 2), 0, "ucta"), ((0, None, 4, 6), 1, "uactua"), ((None, None), 1, "uact"), ((3, 4), 1, "ctua"), ((0, 2, 4, 6), 9, "uauact")])
def test_the_place_of_an_action_by_time(times, minute, order):
    """u a customer and a an agent, c the call and t its result."""
    messages, places = merge(talk("a", times)["messages"], [{**action("a", minute), "moment": moment(action("a", minute)["at"])}])
    letters = ["c" if m.get("tool_calls") else m["role"][0] for m in messages]
    assert "".join(letters) == order
    assert [messages[place]["content"] for place in places] == [m["content"] for m in talk("a", times)["messages"]]


def test_bad_actions_are_counted_without_text(source, tmp_path):
    bad = ["x{", {"tool": SECRET, "at": "2026-03-01"}, action("a", 1, at=SECRET), action("a", 1, arguments=SECRET), action("a", 1, tool=None), [SECRET]]
    (tmp_path / "actions.jsonl").write_text("\n".join(b if isinstance(b, str) else json.dumps(b) for b in bad))
    reader = source("jsonl", [talk("a")], actions=str(tmp_path / "actions.jsonl"))
    assert len(next(reader.conversations()).messages) == 2
    assert reader.counts["actions bad"] == 6
    assert "4111" not in json.dumps([reader.bad, dict(reader.counts)])
    with pytest.raises(StageError, match=r"6 of the first 6 actions cannot be used"):
        list(source("jsonl", [talk("a")], actions=str(tmp_path / "actions.jsonl"), max_bad_fraction=0.1).conversations())


def test_excluded_customers_and_old_conversations_go_first_and_are_not_bad(source, tmp_path):
    (tmp_path / "out.txt").write_text("\ufeffu-1\n\n 77 \n")
    records = [talk("a", customer={"id": "u-1"}), talk("b", customer={"id": 77}), talk("c", customer={"id": "u-2"}), talk("d", started_at="2025-01-01T00:00:00Z"),
               talk("e", started_at=None), {**talk("f", customer={"id": "u-1"}), "messages": "broken"}]
    reader = source("jsonl", records, exclude_customers=str(tmp_path / "out.txt"), max_age_days=30, today="2026-03-10", max_bad_fraction=0.0)
    assert [c.id for c in reader.conversations()] == ["c"]
    assert reader.counts["conversations: a customer in data.exclude_customers"] == 3
    assert reader.counts["conversations: older than data.max_age_days"] == 1
    assert reader.counts["conversations: no time of its start, and data.max_age_days asks for one"] == 1
    assert reader.counts["conversations bad"] == 0


def test_age_is_measured_from_today_where_none_is_given(source):
    with pytest.raises(StageError, match=r"none of 1 conversations is left \(1: older than data.max_age_days\)"):
        list(source("jsonl", [talk("a", started_at="2001-01-01T00:00:00Z")], max_age_days=30).conversations())


def test_settings_that_cannot_be_used_are_said(source):
    for data, says in (({"exclude_customers": "/nowhere"}, "is no file"), ({"max_age_days": 3, "today": "soon"}, "data.today=soon is no date"), ({"actions": "/nowhere"}, "data.actions=/nowhere is no file")):
        with pytest.raises(StageError, match=says):
            list(source("jsonl", [talk("a")], **data).conversations())


@pytest.mark.parametrize(("value", "says"), [
    ("2026-03-01T10:00:00+01:00", "2026-03-01T09:00:00Z"), ("2026-03-01 09:00:00 UTC", "2026-03-01T09:00:00Z"), (1772355600, "2026-03-01T09:00:00Z"), ("2026-03-01", "2026-03-01T00:00:00Z"),
    ("soon", None), (None, None), (True, None), (1e30, None), ([], None)])
def test_a_moment_is_read_or_is_none(value, says):
    assert stamp(value) == says


def test_a_customers_rating_says_nothing_of_a_colleagues_severity(config):
    with stage_output(config, "anonymise") as out:
        write_jsonl(out / "conversations.jsonl", [talk(f"c-{i}", customer={"id": f"u-{i}"}, started_at=f"2026-01-{1 + i % 28:02d}") | {
            "messages": [{"role": "user", "content": f"question {i * 7919}"}, {"role": "assistant", "content": f"answer {i * 104729}"}]} for i in range(40)])
        write_jsonl(out / "feedback.jsonl", [{"conversation_id": f"c-{i}", "kind": "rating", "rating": 1, "rater_id": "customer"} for i in range(40)]
                    + [{"conversation_id": f"c-{i}", "kind": "rating", "rating": 4, "rater_id": "r", "message_index": 1} for i in range(40)])
    prepare.run(config)
    report = json.loads((stage_dir(config, "prepare") / "report.json").read_text())
    assert report["severity"] == {"r": 0.0}
    assert report["rows"]["unpaired"]["train"] == 2 * report["conversations"]["train"], "what the customer thought is kept all the same"


def test_the_report_counts_what_is_unfit_to_learn(config):
    replies = ["I have refunded 40 euro.", "Hi, I'm Anna. What is your order number?", "What is your order number?"]
    with stage_output(config, "anonymise") as out:
        write_jsonl(out / "conversations.jsonl", [talk(f"c-{i}", customer={"id": f"u-{i}"}, started_at=f"2026-01-{1 + i % 28:02d}") | {
            "messages": [{"role": "user", "content": f"question {i * 7919}"}, {"role": "assistant", "content": replies[i % 3]}]} for i in range(60)])
        write_jsonl(out / "feedback.jsonl", [])
    prepare.run(config)
    folder = stage_dir(config, "prepare")
    report = json.loads((folder / "report.json").read_text())
    rows = [row["completion"][0]["content"] for split in prepare.SPLITS for _, row in read_jsonl(folder / f"sft/{split}.jsonl")]
    assert set(rows) == {"Hi. What is your order number?", "What is your order number?"}
    assert sum(report["targets"].values()) + rows.count("What is your order number?") == sum(report["conversations"].values())
    assert set(report["targets"]) == {"excluded: claims an action nobody recorded", "rewritten: introduces a person"}
