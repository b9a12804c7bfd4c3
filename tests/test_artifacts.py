from __future__ import annotations

import json
import os

import pytest

from data_prep import artifacts
from data_prep.artifacts import FileHashes, StageError, code_hash, hash_value, is_current, read_manifest, require, stage_dir, stage_output
from data_prep.conversation import write_json


def test_a_stage_is_done_when_its_manifest_is_there(config):
    with stage_output(config, "sft") as out:
        (out / "a.txt").write_text("x")
        assert read_manifest(f"{config.run_dir}/sft") is None
        out.summary("one file", files=1)
    folder = require(config, "sft", "dpo")
    manifest = read_manifest(folder)
    assert manifest["summary"] == "one file"
    assert list(manifest["outputs"]) == ["a.txt"]
    assert not folder.with_name("sft.partial").exists()


def test_a_missing_input_names_the_stage_to_run(config):
    with pytest.raises(StageError, match=r"dpo needs the output of sft.*stages=\[sft\]"):
        require(config, "sft", "dpo")


def test_a_failed_stage_leaves_the_old_output_and_its_partial_work(config):
    with stage_output(config, "sft") as out:
        (out / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), stage_output(config, "sft") as out:
        (out / "a.txt").write_text("new")
        raise RuntimeError("killed")
    assert (require(config, "sft", "x") / "a.txt").read_text() == "old"
    with stage_output(config, "sft") as out:
        assert (out / "a.txt").read_text() == "new", "the same fingerprint resumes"
    config.fingerprint = {"seed": 1}
    with pytest.raises(RuntimeError), stage_output(config, "dpo") as out:
        (out / "b.txt").write_text("x")
        raise RuntimeError("killed")
    config.fingerprint = {"seed": 2}
    with stage_output(config, "dpo") as out:
        assert not (out / "b.txt").exists(), "another fingerprint starts afresh"


def test_the_memory_of_the_other_processes_of_a_stage_is_counted(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(artifacts, "_workers", {})
    with stage_output(config, "sft") as out:
        for rank, gib in ((1, 100), (2, 20)):
            write_json(out / f"left-{rank}", gib * 2**30)
    assert 120 < read_manifest(stage_dir(config, "sft"))["peak_memory_gib"] < 140
    assert not list(stage_dir(config, "sft").glob("left-*"))


@pytest.mark.parametrize(("age", "waited_for"), [(0, False), (3600, True)])
def test_a_process_that_was_done_before_the_first_came_is_not_waited_for(config, monkeypatch, age, waited_for):
    """As where a killed stage had only to be finished. What a process of the start before left there counts for nothing."""
    waits = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(artifacts, "_workers", {})
    monkeypatch.setattr(artifacts, "_wait", lambda ready: waits.append(left.exists()) or left.write_text("7"))
    partial = stage_dir(config, "sft").with_name("sft.partial")
    partial.mkdir(parents=True)
    left = partial / "left-1"
    write_json(partial / "fingerprint.json", {"seed": 0})
    write_json(left, 7)
    os.utime(left, (left.stat().st_mtime - age,) * 2)
    with stage_output(config, "sft"):
        pass
    assert waits == [not waited_for]


def test_current_means_same_fingerprint_and_untouched_outputs(config, tmp_path):
    with stage_output(config, "sft") as out:
        (out / "a.txt").write_text("x")
    folder, hashes = require(config, "sft", "x"), FileHashes(tmp_path / "hashes.json")
    fingerprint = hash_value({"seed": 0})
    assert is_current(folder, fingerprint, hashes)
    assert not is_current(folder, hash_value({"seed": 1}), hashes)
    (folder / "a.txt").write_text("y!")
    assert not is_current(folder, fingerprint, FileHashes(tmp_path / "hashes.json"))
    (folder / "a.txt").unlink()
    assert not is_current(folder, fingerprint, hashes)


def test_a_hash_is_computed_once_per_content(tmp_path):
    path = tmp_path / "big"
    path.write_text("one")
    hashes = FileHashes(tmp_path / "h.json")
    first = hashes.of(path)
    assert FileHashes(tmp_path / "h.json").known[str(path)]["hash"] == first
    path.write_text("other")
    assert hashes.of(path) != first
    assert json.loads((tmp_path / "h.json").read_text())


@pytest.fixture
def packages(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    artifacts.imports_of.cache_clear()
    (tmp_path / "training").mkdir()
    (tmp_path / "data_prep").mkdir()
    (tmp_path / "training/sft.py").write_text("def run():\n    from data_prep.text import clean\n    return clean\n")
    (tmp_path / "data_prep/text.py").write_text("def clean(): return 1\n")
    (tmp_path / "data_prep/other.py").write_text("x = 1\n")
    yield tmp_path
    artifacts.imports_of.cache_clear()


def test_code_changes_are_seen_through_imports_and_comments_are_not(packages):
    first = code_hash("training.sft")
    (packages / "data_prep/text.py").write_text("def clean(): return 1  # why\n")
    assert code_hash("training.sft") == first, "a comment reruns nothing"
    (packages / "data_prep/other.py").write_text("x = 2\n")
    assert code_hash("training.sft") == first, "a module that is not imported reruns nothing"
    (packages / "data_prep/text.py").write_text("def clean(): return 2\n")
    assert code_hash("training.sft") != first


@pytest.mark.parametrize("name", ["words.yaml", "shipped/names.crfsuite"])
def test_a_table_or_model_beside_its_module_is_part_of_the_code(packages, name):
    (packages / "data_prep/text.py").write_text(f'def clean(): return open("{name}")\n')
    first = code_hash("training.sft")
    (packages / "data_prep" / name).parent.mkdir(exist_ok=True)
    (packages / "data_prep" / name).write_text("a: 1\n")
    second = code_hash("training.sft")
    (packages / "data_prep" / name).write_text("a: 2\n")
    assert len({first, second, code_hash("training.sft")}) == 3
