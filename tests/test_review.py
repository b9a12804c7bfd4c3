"""Two reviewers at real servers: what they see, mark, settle and sign, and that no raw text is written anywhere."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager

import pytest
from omegaconf import OmegaConf

from conf.load import load_config
from data_prep import anonymise, prepare, review, signoff
from data_prep.artifacts import FileHashes, StageError, hash_value, read_manifest, require
from data_prep.conversation import read_jsonl, write_jsonl
from data_prep.pii import fit
from data_prep.statistics import cohen_kappa
from training.pipeline import BY_NAME, fingerprint, record_config, why

pytestmark = pytest.mark.slow

SECRET = "marta.zielinska@poczta.pl"          # planted: stands in the source and nowhere else
TOKEN = "the-token"


def conversation(number: int, locale: str) -> dict:
    said = {"en": "My address is", "de": "Meine Adresse ist"}[locale[:2]]
    return {"id": f"c-{number}", "locale": locale, "customer": {"id": f"u-{number}", "name": "Marta Zielinska"},
            "messages": [{"role": "user", "content": f"{said} {SECRET}, order {48000 + number * 7}."}, {"role": "assistant", "content": f"ok {number}"}]}


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive, anonymised as the pipeline would."""
    monkeypatch.setenv("SUPPORTLOOP_KEY", "a key")
    write_jsonl(tmp_path / "in.jsonl", [conversation(n, "de-DE" if n % 4 == 0 else "en-GB") for n in range(12)])
    write_jsonl(tmp_path / "feedback.jsonl", [{"conversation_id": "c-1", "message_index": 1, "kind": "edit", "edit": f"I write to {SECRET}"}])
    config = load_config([f"run_dir={tmp_path}/runs/acme", "company=null", "data=jsonl", f"data.conversations={tmp_path}/in.jsonl", f"data.feedback={tmp_path}/feedback.jsonl",
                          "anonymise.canaries=20", f"anonymise.fit={fit.SHIPPED}", "prepare.held_out_customers=0.2"])
    run_stage(config, anonymise, "anonymise", tmp_path)
    return config


def run_stage(config, module, name: str, tmp_path) -> None:
    config.fingerprint = fingerprint(config, BY_NAME[name], FileHashes(tmp_path / "hashes.json"), {name: "code"})
    record_config(config, BY_NAME[name], OmegaConf.to_container(config.fingerprint))
    module.run(config)


@contextmanager
def reading(config, reviewer: str, n: int = 12):
    """A function that asks a real server, as the page does."""
    sample = signoff.sample_of(config.run_dir, n)
    with review.server(review.Work(sample, reviewer, review.beside_source(config, sample), config.anonymise.max_residual), 0, TOKEN) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

        def ask(path: str, body: dict | None = None, headers: dict | None = None):
            request = urllib.request.Request(f"http://127.0.0.1:{running.server_port}{path}", data=json.dumps(body).encode() if body is not None else None, headers={"X-Token": TOKEN} if headers is None else headers)
            with urllib.request.urlopen(request, timeout=10) as reply:
                return json.load(reply) if reply.headers["Content-Type"] == "application/json" else reply.read().decode(), reply.headers

        yield lambda path, body=None: ask(path, body)[0], ask
        running.shutdown()


def marked(config, reviewer: str, leaking: dict[int, str] = {}) -> None:  # noqa: B006
    """Read everything; what stands at a place of `leaking` gets that verdict."""
    with reading(config, reviewer) as (ask, _):
        for place, item in enumerate(ask("/state")["items"]):
            verdict = leaking.get(place, "clean")
            ask("/mark", {"id": item["id"], "verdict": verdict, "kinds": ["name"], "turns": [1]})


def test_the_page_shows_raw_beside_masked_and_only_to_whom_has_the_token(archive, tmp_path, capfd):
    with reading(archive, "anna") as (ask, full):
        page, headers = full(f"/?token={TOKEN}", headers={})
        assert "<title>Review</title>" in page
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert SECRET not in page
        item = next(i for i in ask("/state")["items"] if i["id"] == anonymise.pseudonym(b"a key", "conversation", "c-1"))
        shown = ask(f"/conversation?id={item['id']}")
        first, edit = shown["turns"][0], shown["turns"][-1]
        assert SECRET in [text for text, kind in first["raw"] if kind == "email"]
        assert not any(SECRET in text for text, _ in first["masked"])
        assert [text for text, kind in first["raw"] if not kind] == [text for text, kind in first["masked"] if not kind]
        assert (edit["role"], edit["turn"]) == ("edit", 3)
        assert any(SECRET in text for text, _ in edit["raw"]), "edits are released too"
        for path, given in (("/", {}), ("/?token=no", {}), ("/state", {}), ("/state", {"X-Token": "no"}), (f"/state?token={TOKEN}", {}), ("/state", {"X-Token": TOKEN, "Host": "elsewhere.example"}),
                            (f"/conversation?id={item['id']}", {})):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                full(path, headers=given)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            full("/mark", {"id": item["id"], "verdict": "clean"}, {})
        for bad in ({"verdict": "clean"}, {"id": item["id"], "verdict": "leak"}, {"id": item["id"], "verdict": "leak", "kinds": ["x"], "turns": [1]}, {"id": item["id"], "verdict": "leak", "kinds": ["name"], "turns": [9]}, [1]):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                ask("/mark", bad)
        ask("/mark", {"id": item["id"], "verdict": "leak", "kinds": ["e-mail"], "turns": [1]})
    everything = "".join(path.read_text(errors="replace") for path in (tmp_path / "runs").rglob("*") if path.is_file())
    said = capfd.readouterr()
    assert all(word not in everything + said.out + said.err for word in (SECRET, "Zielinska"))


def test_two_reviewers_settle_and_sign_and_prepare_goes_on(archive, tmp_path):
    with pytest.raises(StageError, match=r"python -m data_prep.review .*acme reviewer=NAME"):
        prepare.run(archive)
    marked(archive, "anna", {3: "leak"})
    with reading(archive, "anna") as (ask, _):
        assert sum(bool(item["mark"]) for item in ask("/state")["items"]) == 12, "one can stop and go on"
    with pytest.raises(StageError, match=r"two reviewers must have read all 12 conversations \(anna 12\)"):
        signoff.sign(signoff.sample_of(archive.run_dir, 12), 0.02)
    with reading(archive, "ben") as (ask, _):
        assert all(item["theirs"] is None for item in ask("/state")["items"]), "nobody sees the other's marks before the end"
    marked(archive, "ben", {5: "unsure"})
    sample = signoff.sample_of(archive.run_dir, 12)
    with pytest.raises(StageError, match="anna has 2 of 2 differing"):
        signoff.sign(sample, 0.02)
    for reviewer in ("anna", "ben"):
        with reading(archive, reviewer) as (ask, _):
            items = ask("/state")["items"]
            assert [place for place, item in enumerate(items) if item["again"]] == [3, 5]
            assert [items[place]["theirs"]["verdict"] for place in (3, 5)] == (["clean", "unsure"] if reviewer == "anna" else ["clean", "clean"]), "the other's latest mark"
            with pytest.raises(urllib.error.HTTPError):
                ask("/mark", {"id": items[0]["id"], "verdict": "unsure"})
            for place in (3, 5):
                state = ask("/mark", {"id": items[place]["id"], "verdict": "clean"})
            assert state["may_sign"] == (reviewer == "ben")
    with reading(archive, "ben") as (ask, _):
        assert ask("/sign", {})["accepted"]
    with reading(archive, "carl") as (ask, _), pytest.raises(urllib.error.HTTPError):
        ask("/mark", {"id": items[0]["id"], "verdict": "clean"})
    signed = json.loads((signoff.review_folder(archive.run_dir) / "signoff.json").read_text())
    assert (signed["reviewers"], signed["n"], signed["leaks"], signed["agreement"]["settled"]) == (["anna", "ben"], 12, 0, 2)
    assert signed["agreement"]["equal"] == pytest.approx(10 / 12)
    assert [(row["language"], row["read"]) for row in signed["languages"]] == [("de", 3), ("en", 9)]
    run_stage(archive, prepare, "prepare", tmp_path)
    facts = read_manifest(require(archive, "prepare", "test"))["facts"]
    assert facts["signoff"]["state"] == "accepted"
    assert "anna and ben read 12 of 12 conversations" in signoff.sentence(facts["signoff"])


def test_a_leak_that_one_of_them_still_sees_counts_and_refuses(archive):
    marked(archive, "anna", {0: "leak"})
    marked(archive, "ben")
    for reviewer, verdict in (("anna", "leak"), ("ben", "clean")):
        with reading(archive, reviewer) as (ask, _):
            ask("/mark", {"id": ask("/state")["items"][0]["id"], "verdict": verdict, "kinds": ["phone"], "turns": [2]})
    assert review.main([archive.run_dir, "action=sign", "n=12"]) == 1
    signed = signoff.read_signoff(archive.run_dir)
    assert (signed["leaks"], signed["accepted"], signed["found"][0]["kinds"]) == (1, False, ["phone"])
    with pytest.raises(StageError, match=r"was refused \(anna and ben read 12 of 12"):
        prepare.run(archive)
    assert review.main([archive.run_dir, "action=sign", "n=12", "anonymise.max_residual=0.5"]) == 0


def test_a_sign_off_is_for_what_was_read(archive, tmp_path):
    marked(archive, "anna")
    marked(archive, "ben")
    assert signoff.sign(signoff.sample_of(archive.run_dir, 12), 0.02)["accepted"]
    assert signoff.required(archive)["state"] == "accepted"
    archive.anonymise.mode = "placeholder"
    run_stage(archive, anonymise, "anonymise", tmp_path)
    with pytest.raises(StageError, match="reviewed by two people"):
        signoff.required(archive)
    archive.anonymise.signoff = "waived"
    assert signoff.sentence(signoff.required(archive)) == signoff.WAIVED
    archive.anonymise.signoff = "maybe"
    with pytest.raises(StageError, match="choose one of required, waived"):
        signoff.required(archive)


def test_the_sample_company_needs_no_sign_off_and_to_waive_it_anonymises_nothing_again(archive, config, tmp_path):
    assert signoff.required(config) == {"state": "not needed"}
    run_stage(archive, prepare_waived(archive), "prepare", tmp_path)
    hashes = FileHashes(tmp_path / "hashes.json")
    wanted = {name: fingerprint(archive, BY_NAME[name], hashes, {name: "code"}) for name in ("anonymise", "prepare")}
    assert read_manifest(require(archive, "anonymise", "t"))["fingerprint"] == hash_value(wanted["anonymise"])
    archive.anonymise.signoff = "required"
    assert "config" in why(require(archive, "prepare", "t"), fingerprint(archive, BY_NAME["prepare"], hashes, {"prepare": "code"}))


def prepare_waived(config):
    config.anonymise.signoff = "waived"
    return prepare


def test_another_source_or_key_is_refused(archive, tmp_path, monkeypatch):
    sample = signoff.sample_of(archive.run_dir, 5)
    monkeypatch.setenv("SUPPORTLOOP_KEY", "another")
    with pytest.raises(StageError, match="under another key"):
        review.beside_source(archive, sample)
    monkeypatch.setenv("SUPPORTLOOP_KEY", "a key")
    write_jsonl(tmp_path / "in.jsonl", [record for _, record in read_jsonl(tmp_path / "in.jsonl")][:6])
    with pytest.raises(StageError, match="not in the source as they were"):
        review.beside_source(archive, signoff.sample_of(archive.run_dir, 12))


@pytest.mark.parametrize(("arguments", "says"), [
    (["/no/run", "reviewer=anna"], "give the folder of a run"), (["runs/x"], "reviewer=NAME is missing"), (["runs/x", "reviewer=../x"], "reviewer=NAME"), (["runs/x", "n=0", "reviewer=a"], "whole numbers"),
    (["reviewer=anna"], "usage"), (["runs/x", "whom=anna"], "usage")])
def test_wrong_arguments_are_said(arguments, says):
    with pytest.raises(StageError, match=says):
        review.main(arguments)


def test_the_sample_is_the_same_for_both_proportional_and_grows():
    records = [(f"c{i}", "en" if i % 10 else "sv") for i in range(2000)]
    small, totals = signoff.drawn(records, "seed", 100)
    large, _ = signoff.drawn(reversed(records), "seed", 200)
    assert Counter(small.values()) == {"en": 90, "sv": 10}
    assert totals == {"en": 1800, "sv": 200}
    assert set(small) < set(large)
    assert set(small) != set(signoff.drawn(records, "another", 100)[0])
    assert len(signoff.drawn(records[:7], "seed", 100)[0]) == 7


def test_pieces_of_raw_answer_to_pieces_of_masked():
    masked = review.split_at("I am Bo Ek, Hill 3 Rome, bye", [(5, 10, "name"), (12, 18, "address"), (19, 23, "address")])
    assert review.aligned("I am Anna Li, Via Po 12 Milano, bye", masked) == [("I am ", ""), ("Anna Li, Via Po 12 Milano", "name, address"), (", bye", "")]
    assert review.aligned("I was Anna Li", masked) == [("I was Anna Li", "")]
    assert review.aligned("x a@b.c", review.split_at("x d@e.f", [(2, 7, "email")])) == [("x ", ""), ("a@b.c", "email")]
    assert review.aligned("same", review.split_at("same", [])) == [("same", "")]


def test_kappa_agrees_with_a_textbook_table():
    a, b = ["y"] * 25 + ["n"] * 25, ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(a, b) == pytest.approx(0.4)      # 2 x 2 table 20, 5, 10, 15: observed 0.7, expected 0.5
    assert cohen_kappa(["clean"] * 9, ["clean"] * 9) is None
