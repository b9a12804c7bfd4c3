from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from data_prep.artifacts import StageError
from data_prep.ingest import Reader

STAR = Path(__file__).resolve().parents[2] / "shared/data/star"
DIALOGUE = {
    "DialogueID": 5, "CompletionLevel": "Complete", "AnonymizedUserWorkerID": "u", "AnonymizedWizardWorkerID": "w",
    "Scenario": {"WizardCapabilities": [{"Task": "bank_balance"}]}, "UserQuestionnaire": [{"Question": "calm?", "Answer": False}],
    "Events": [
        {"Agent": "UserGuide", "Action": "instruct", "Text": "be rude", "UnixTime": 1589375664},
        {"Agent": "User", "Action": "utter", "Text": "my balance please", "UnixTime": 1589375665},
        {"Agent": "Wizard", "Action": "request_suggestions", "Text": "NEVER SENT", "UnixTime": 1589375666},
        {"Agent": "Wizard", "Action": "pick_suggestion", "Text": "Your name?", "UnixTime": 1589375667},
        {"Agent": "User", "Action": "utter", "Text": "Ann", "UnixTime": 1589375668},
        {"Agent": "Wizard", "Action": "query", "APIName": "bank_balance", "Constraints": [{"Name": "api.is_equal_to(\"Ann\")"}, {"Pin": "12"}], "UnixTime": 1589375669},
        {"Agent": "KnowledgeBase", "Action": "return_item", "Item": {"APIName": "bank_balance", "Balance": 7}},
        {"Agent": "Wizard", "Action": "utter", "Text": "You have 7.", "UnixTime": 1589375670}]}


@pytest.fixture
def star(config, tmp_path):
    config.data.format, config.data.root = "star", str(tmp_path)
    folder = tmp_path / "dialogues"
    folder.mkdir()
    (folder / "1.json").write_text(json.dumps(DIALOGUE))
    (folder / "2.json").write_text(json.dumps({**DIALOGUE, "DialogueID": 6, "CompletionLevel": "EarlyDisconnectDuringDialogue"}))
    return config


def test_star_keeps_what_was_sent_and_turns_queries_into_tool_calls(star):
    reader = Reader(star)
    conversation, = reader.conversations()
    assert reader.counts["conversations: an incomplete dialogue (EarlyDisconnectDuringDialogue)"] == 1
    assert [(m["role"], m["content"]) for m in conversation.messages] == [
        ("user", "my balance please"), ("assistant", "Your name?"), ("user", "Ann"), ("assistant", ""), ("tool", '{"Balance": 7}'), ("assistant", "You have 7.")]
    call = conversation.messages[3]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("bank_balance", {"Name": "Ann", "Pin": "12"})
    assert [m.get("suggested") for m in conversation.messages if m["role"] == "assistant"] == [True, None, False]
    assert "NEVER SENT" not in json.dumps(conversation.to_record())
    assert conversation.started_at == "2020-05-13T13:14:24Z"


def test_star_questionnaires_are_feedback(star):
    feedback, = Reader(star).feedback(lambda i: i == "star-5")
    assert (feedback.kind, feedback.thumb, feedback.rater_id) == ("thumb", "down", "customer")


def test_star_reads_the_archive_too(star, tmp_path):
    (tmp_path / "dialogues/1.json").unlink()
    (tmp_path / "dialogues/2.json").unlink()
    (tmp_path / "dialogues").rmdir()
    with tarfile.open(tmp_path / "star_dialogues.tar.gz", "w:gz") as tar:
        raw = json.dumps(DIALOGUE).encode()
        info = tarfile.TarInfo("dialogues/1.json")
        info.size = len(raw)
        tar.addfile(info, io.BytesIO(raw))
    assert [c.id for c in Reader(star).conversations()] == ["star-5"]


def test_star_without_its_data_says_what_is_missing(star):
    star.data.root = "/nowhere"
    with pytest.raises(StageError, match=r"neither dialogues/ nor star_dialogues.tar.gz"):
        list(Reader(star).conversations())


def test_an_unknown_format_lists_the_choices(config):
    config.data.format = "fax"
    with pytest.raises(StageError, match="the formats are"):
        Reader(config)


def test_limit_reads_only_the_first(config, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps({"id": i + 1, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) for i in range(9)))
    config.data.format, config.data.conversations, config.data.limit = "jsonl", str(path), 3
    assert [c.id for c in Reader(config).conversations()] == ["1", "2", "3"]


def test_an_id_that_comes_twice_is_kept_once(config, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps({"id": "x", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) for _ in range(2)))
    config.data.format, config.data.conversations, config.data.max_bad_fraction = "jsonl", str(path), 0.6
    reader = Reader(config)
    assert len(list(reader.conversations())) == 1
    assert reader.counts["conversations: an id that occurred before"] == 1


@pytest.mark.slow
@pytest.mark.skipif(not STAR.is_dir(), reason="the STAR data are not here")
def test_the_real_star_has_5820_complete_dialogues(config):
    config.data.format, config.data.root = "star", str(STAR)
    config.data.max_bad_fraction = 0.01
    reader = Reader(config)
    conversations = list(reader.conversations())
    assert len(conversations) == 5818, "two complete dialogues have one side only"
    assert reader.counts["conversations"] == 6652
    assert reader.counts["conversations: an incomplete dialogue (EarlyDisconnectDuringDialogue)"] == 700
    sent = [m for c in conversations for m in c.messages if m["role"] == "assistant" and not m.get("tool_calls")]
    assert sum(m["suggested"] for m in sent) / len(sent) == pytest.approx(45881 / 53032, abs=0.002)
