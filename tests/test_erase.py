"""A person is taken out of every run, and the key can be forgotten: on a small archive, through anonymise and prepare."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from omegaconf import OmegaConf

from conf.load import load_config
from data_prep import anonymise, erase, prepare
from data_prep.artifacts import FileHashes, StageError, hash_value, is_current, outputs_hash, read_manifest, stage_output
from data_prep.conversation import read_jsonl, write_json, write_jsonl
from data_prep.pii import fit
from data_prep.pii.mask import pseudonym
from data_prep.signoff import KINDS, N, required, review_folder, sample_of, sign
from training.pipeline import BY_NAME, fingerprint, record_config, why

pytestmark = pytest.mark.slow

WORDS = ["lamp", "parcel", "refund", "invoice", "window", "colour", "garden", "kettle", "bridge", "winter", "paper", "button", "mirror", "pillow", "candle", "basket", "ladder", "carpet", "saucer", "drawer"]


def conversation(number: int) -> dict:
    question = " ".join(WORDS[(number * step + step) % 20] for step in (1, 3, 7, 9, 11, 13))
    agents = [{"id": "u-3"}] if number == 9 else [{"id": "a-1"}]
    return {"id": f"c-{number}", "customer": {"id": f"u-{number % 8}"}, "agents": agents, "started_at": f"2026-01-{number + 1:02d}T10:00:00Z",
            "messages": [{"role": "user", "content": f"where is the {question}"}, {"role": "assistant", "content": f"the {question} is on the way", "drafts": [{"id": "d", "content": f"no {question}"}]}]}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Anonymised, with a vault, prepared, and "trained"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUPPORTLOOP_KEY", raising=False)
    (tmp_path / "key").write_text("a key")
    write_jsonl(tmp_path / "in.jsonl", [conversation(n) for n in range(24)])
    write_jsonl(tmp_path / "feedback.jsonl", [{"conversation_id": f"c-{n}", "message_index": 1, "kind": "rating", "rating": 4, "rater_id": "r"} for n in range(24)]
                + [{"conversation_id": f"c-{n}", "message_index": 1, "draft_id": "d", "kind": "rating", "rating": 1, "rater_id": "r"} for n in range(24)])
    config = load_config(["run_dir=runs/acme", "company=null", "data=jsonl", "data.conversations=in.jsonl", "data.feedback=feedback.jsonl", "anonymise.canaries=20", f"anonymise.fit={fit.SHIPPED}",
                          "anonymise.key_file=key", "anonymise.vault=safe/vault.jsonl", "anonymise.signoff=waived", "prepare.held_out_customers=0.1", "prepare.newest=0.1"])
    for module, name in ((anonymise, "anonymise"), (prepare, "prepare")):
        config.fingerprint = fingerprint(config, BY_NAME[name], FileHashes(tmp_path / "hashes.json"), {name: "code"})
        record_config(config, BY_NAME[name], OmegaConf.to_container(config.fingerprint))
        module.run(config)
    for stage in ("sft", "export"):
        with stage_output(config, stage) as out:
            write_json(out / "made.json", {})
            out.summary("made", winner="sft")
    write_json(tmp_path / "runs/acme/verify/release.json", {"winner": "sft", "served": "cafe"})
    return config


def everything_of(run_dir: str, *names: str) -> str:
    return "".join(open(f"{run_dir}/{name}").read() for name in names)


HOLDERS = ("anonymise/conversations.jsonl", "anonymise/feedback.jsonl", "anonymise/provenance.jsonl", "prepare/sft/train.jsonl", "prepare/preferences/train.jsonl", "prepare/unpaired/train.jsonl")


def test_a_person_leaves_every_file_and_nobody_else_does(run, tmp_path, capsys):
    shutil.copytree("runs/acme", "runs/other")
    ids = {pseudonym(b"a key", "conversation", f"c-{n}") for n in (3, 11, 19)}
    write_jsonl(review_folder("runs/acme") / "anna.jsonl", [{"id": i, "verdict": "clean", "released": "x", "pass": 1} for i in (*sorted(ids), "another")])
    before = {name: everything_of("runs/acme", name).splitlines() for name in HOLDERS}
    with open("safe/vault.jsonl", "a") as vault:
        vault.write(json.dumps({"id": "another", "sealed": "y"}) + "\n")
    assert all(i in everything_of(".", "safe/vault.jsonl") for i in ids)
    arguments = ["customer=u-3", "key_file=key", "vault=safe/vault.jsonl"]

    assert erase.main([*arguments, "dry_run=true"]) == 0
    said = capsys.readouterr().out
    assert before == {name: everything_of("runs/acme", name).splitlines() for name in HOLDERS}
    assert not os.path.exists("runs/acme/erased.jsonl")
    for part in ("runs/acme", "runs/other", "sft", f"sft {outputs_hash(read_manifest('runs/acme/export'))}", "sft cafe", "data.exclude_customers", "dry run: nothing was changed", "participant=true"):
        assert part in said
    assert "u-3" not in said

    assert erase.main(arguments) == 0
    for run_dir in ("runs/acme", "runs/other"):
        for name in HOLDERS:
            left = everything_of(run_dir, name).splitlines()
            assert left == [line for line in before[name] if not any(i in line for i in ids)], name
    assert [line for line in before[HOLDERS[3]] if any(i in line for i in ids)], "they were in training"
    assert not any(i in everything_of(".", "safe/vault.jsonl", "runs/acme/anonymise.review/anna.jsonl") for i in ids)
    assert everything_of(".", "safe/vault.jsonl", "runs/acme/anonymise.review/anna.jsonl").count("another") == 2
    [(_, tombstone)] = read_jsonl("runs/acme/erased.jsonl")
    assert (tombstone["customer"], tombstone["conversations"], tombstone["trained"]) == (pseudonym(b"a key", "customer", "u-3"), 3, ["sft"])
    hashes = FileHashes(tmp_path / "hashes.json")
    assert is_current(tmp_path / "runs/acme/anonymise", hash_value(fingerprint(run, BY_NAME["anonymise"], hashes, {"anonymise": "code"})), hashes), "it is not made again with the person in it"
    assert "inputs" in why(tmp_path / "runs/acme/prepare", fingerprint(run, BY_NAME["prepare"], hashes, {"prepare": "code"}))
    assert not list((tmp_path / "runs").rglob("*.erased"))

    capsys.readouterr()
    assert erase.main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert erase.main([*arguments, "participant=true"]) == 0
    assert pseudonym(b"a key", "conversation", "c-9") not in everything_of("runs/acme", *HOLDERS)


def test_a_killed_erasure_can_be_repeated(run, tmp_path, monkeypatch):
    ids = {pseudonym(b"a key", "conversation", f"c-{n}") for n in (3, 11, 19)}
    moves = []

    def killed(source, target, replace=os.replace):
        moves.append(target)
        if str(target).endswith("conversations.jsonl"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(erase.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            erase.main(["customer=u-3", "key_file=key"])
    assert len(moves) > 3
    assert erase.main(["customer=u-3", "key_file=key"]) == 0
    assert not any(i in everything_of("runs/acme", *HOLDERS) for i in ids)
    manifest = read_manifest("runs/acme/anonymise")
    assert is_current(tmp_path / "runs/acme/anonymise", manifest["fingerprint"], FileHashes(tmp_path / "hashes.json"))


@pytest.mark.parametrize(("arguments", "says"), [
    (["customer=u-3"], "the key is missing"), (["customer=u-3", "key_file=/no"], "the key is missing"), (["dry_run=true"], "customer=.* is missing"), (["whom=x"], "unknown argument whom"),
    (["customer=u", "key_file=key", "root=/no"], "holds no run"), (["customer=u", "dry_run=yes"], "true or false"), (["customer=u", "vault=/no"], "vault=/no is no file"), (["forget_key=true"], "needs key_file")])
def test_what_is_missing_is_said(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUPPORTLOOP_KEY", raising=False)
    (tmp_path / "key").write_text("a key")
    with pytest.raises(StageError, match=says):
        erase.main(arguments)


def test_another_key_finds_nothing_and_says_so(run, tmp_path, capsys):
    (tmp_path / "key2").write_text("another key")
    assert erase.main(["customer=u-3", "key_file=key2"]) == 0
    said = capsys.readouterr().out
    assert "under another key, not searched: runs/acme" in said
    assert "nothing to do" in said


def signed(run_dir: str) -> None:
    sample = sample_of(run_dir, N)
    for reviewer in ("anna", "ben"):
        write_jsonl(review_folder(run_dir) / f"{reviewer}.jsonl", [{"released": sample.released, "id": i, "pass": 1, "verdict": "clean", "kinds": [], "turns": []} for i in sample.languages])
    assert sign(sample, 0.02)["accepted"]
    assert len(KINDS) == 10, "one key each, 1 to 0"


def test_an_erasure_leaves_the_sign_off_and_the_key_can_be_forgotten(run, tmp_path, capsys):
    signed("runs/acme")
    erase.main(["customer=u-3", "key_file=key", "vault=safe/vault.jsonl"])
    assert required(run)["state"] == "accepted"
    shutil.copytree("runs/acme", "runs/no_vault")
    manifest = read_manifest("runs/no_vault/anonymise")
    manifest["facts"]["vault"] = False
    write_json("runs/no_vault/anonymise/manifest.json", manifest)
    shutil.copytree("runs/no_vault", "runs/unread")
    shutil.rmtree("runs/unread/anonymise.review")
    key_id = pseudonym(b"a key", "key", "id")
    capsys.readouterr()
    assert erase.main(["forget_key=true", "key_file=key"]) == 0
    said = capsys.readouterr().out
    assert f"add confirm={key_id}" in said
    assert "runs/acme: stays pseudonymised: a vault was kept" in said
    assert "runs/unread: stays pseudonymised: no accepted sign-off" in said
    with pytest.raises(StageError, match="not the id of this key"):
        erase.main(["forget_key=true", "key_file=key", "confirm=no"])
    assert (tmp_path / "key").read_text() == "a key"
    assert erase.main(["forget_key=true", "key_file=key", f"confirm={key_id}"]) == 0
    assert not (tmp_path / "key").exists()
    claims = {name: (read_manifest(f"runs/{name}/anonymise")["facts"]["claim"], json.loads(everything_of(f"runs/{name}", "anonymise/report.json"))["claim"]) for name in ("acme", "no_vault", "unread")}
    assert all(claim.startswith("anonymised: the key was destroyed on 2") for claim in claims["no_vault"])
    assert "the key was destroyed" in everything_of("runs/no_vault", "anonymise/report.html")
    assert {claim for name in ("acme", "unread") for claim in claims[name]} == {anonymise.CLAIM}
    run.run_dir = "runs/no_vault"
    assert required(run)["state"] == "accepted", "the claim changes nothing that was read"
    with pytest.raises(StageError, match="destroyed before"):
        erase.main(["forget_key=true", "key_file=key", f"confirm={key_id}"])
