from __future__ import annotations

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from conf.load import load_config
from data_prep import prepare
from data_prep.artifacts import StageError, stage_dir, stage_output
from data_prep.conversation import read_jsonl, write_jsonl
from data_prep.ingest import Reader
from data_prep.ingest.actions import merge
from data_prep.ingest.files import moment, stamp

SECRET = "my card is 4111 1111 1111 1111"


def spoken(conversation) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in conversation.messages]


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


def test_a_time_that_cannot_be_read_is_a_bad_record_and_not_none(table):
    """Without their times a split by time would have nothing to split."""
    rows = [HEADER, "1;client;hello;03/04/2026 10:15;", "1;agent;hi;03/04/2026 10:16;", "2;client;hello;2026-03-01 10:00;", "2;agent;hi;;"]
    reader = table("\n".join(rows).encode())
    assert [c.id for c in reader.conversations()] == ["2"]
    assert "row 1 has a time that cannot be read" in reader.bad[0]["reason"]


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
    assert {rater: found["severity"] for rater, found in report["raters"].items()} == {"r": 0.0}
    assert report["rows"]["unpaired"]["train"] == 2 * report["conversations"]["train"], "what the customer thought is kept all the same"


def test_the_report_counts_what_is_unfit_to_learn(config):
    replies = ["I have refunded 40 euro.", "Hi, I'm Anna. What is your order number?", "What is your order number?"]
    with stage_output(config, "anonymise") as out:
        write_jsonl(out / "conversations.jsonl", [talk(f"c-{i}", customer={"id": f"u-{i}"}, started_at=f"2026-01-{1 + i % 28:02d}") | {
            "messages": [{"role": "user", "content": f"question {i * 7919}"}, {"role": "assistant", "content": replies[i % 3]}]} for i in range(60)])
        write_jsonl(out / "feedback.jsonl", [])
    config.prepare.canaries = 0
    prepare.run(config)
    folder = stage_dir(config, "prepare")
    report = json.loads((folder / "report.json").read_text())
    rows = [row["completion"][0]["content"] for split in prepare.SPLITS for _, row in read_jsonl(folder / f"sft/{split}.jsonl")]
    assert set(rows) == {"Hi. What is your order number?", "What is your order number?"}
    assert sum(report["targets"].values()) + rows.count("What is your order number?") == sum(report["conversations"].values())
    assert set(report["targets"]) == {"excluded: claims an action nobody recorded", "rewritten: introduces a person"}
