"""The pipeline as a user runs it: every stage in a process of its own, killed at bad moments, run again, and served."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import psutil
import pytest
import yaml

from conf.load import load_config
from data_prep.conversation import read_jsonl
from eval.verify import served
from training.pipeline import STAGES

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["experiment=smoke", "hardware.threads=1", "generate.conversations=150", "model.vocab_size=600", "pretrain.drills=16", "pretrain.topic_drills=16", "pretrain.call_drills=8", "pretrain.conversations=64", "pretrain.trainer.max_steps=3", "pretrain.trainer.per_device_train_batch_size=8",
         "sft.trainer.max_steps=6", "sft.trainer.save_steps=1", "reward.trainer.max_steps=2", "dpo.trainer.max_steps=6", "dpo.trainer.save_steps=1", "ppo.steps=3", "ppo.episodes=6",
         "evaluate.conversations=6", "evaluate.seen_conversations=4", "export.parity_prompts=20", "export.force=true", "verify.conversations=2"]
DEFAULT = load_config([]).stages
MEASURED = f"stages=[{','.join(DEFAULT[:DEFAULT.index('evaluate') + 1])}]"
pytestmark = pytest.mark.slow


def pipeline(run_dir: Path, *overrides: str, check: bool = True) -> subprocess.CompletedProcess:
    made = subprocess.run([sys.executable, "-m", "training.pipeline", *SMALL, f"run_dir={run_dir}", *overrides], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not check or made.returncode == 0, made.stderr[-3000:]
    return made


def metrics(run_dir: Path) -> dict:
    """Everything that a run measured; times and paths left out."""
    return {name: json.loads((run_dir / name).read_text()) for name in ("sft/metrics.json", "reward/metrics.json", "dpo/metrics.json", "ppo/metrics.json", "ppo/curve.json", "evaluate/scorecard.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    return run_dir, pipeline(run_dir)


def test_every_stage_runs_and_says_one_line(whole):
    run_dir, made = whole
    for name in DEFAULT:
        assert (run_dir / name / "manifest.json").is_file(), name
        assert any(f"] {name:<10} " in line and line.endswith(" s") for line in made.stdout.splitlines()), f"{name} has no summary"
    assert "stage        seconds  peak memory" in made.stdout
    assert not list(run_dir.glob("*.partial"))


def test_the_same_again_skips_everything_quickly(whole):
    run_dir, _ = whole
    began = time.time()
    made = pipeline(run_dir)
    assert made.stdout.count("current, skipped") == len(DEFAULT)
    assert time.time() - began < 10


def test_a_changed_value_reruns_what_depends_on_it_and_nothing_else(whole):
    run_dir, _ = whole
    made = pipeline(run_dir, "dry_run=true", "dpo.max_chosen_drop=2.0")
    assert "dpo        would run (changed: config)" in made.stdout
    assert "reward     current, skipped" in made.stdout
    assert "sft        current, skipped" in made.stdout


def test_reuse_takes_over_what_would_come_out_the_same(whole, tmp_path):
    run_dir, _ = whole
    made = pipeline(tmp_path / "other", f"reuse={run_dir}", "stages=[generate,anonymise,prepare]")
    assert made.stdout.count(f"taken over from {run_dir}") == 3


def test_the_export_is_a_stock_folder_and_serves(whole):
    run_dir, _ = whole
    model = run_dir / "export/model"
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert not list(model.glob("*.py"))
    assert (model / "chat_template.jinja").read_bytes() == (ROOT / "training/templates/tiny.jinja").read_bytes()
    assert json.loads((run_dir / "export/export.json").read_text())["parity"]["agreement"] >= 0.995
    card = (run_dir / "export/MODEL_CARD.md").read_text()
    assert all(f"| {stage} |" in card for stage in ("generate", "anonymise", "prepare", "sft", "evaluate"))
    assert "pseudonymised: whoever holds the key" in card
    assert "No review was needed: no real customer is in the data." in card
    with served(model) as url:
        client = openai.OpenAI(base_url=url, api_key="none")
        made = client.chat.completions.create(model="supportloop", messages=[{"role": "user", "content": "Where is my order?"}], max_tokens=8)
        assert made.usage.completion_tokens <= 8
        assert made.choices[0].finish_reason in ("stop", "length", "tool_calls")
        chunks = list(client.chat.completions.create(model="supportloop", messages=[{"role": "user", "content": "Where is my order?"}], max_tokens=8, stream=True))
        assert chunks[-1].choices[0].finish_reason


@pytest.mark.parametrize("winner", ["base", "sft", "dpo", "ppo"])
def test_whoever_wins_can_be_exported(whole, tmp_path, winner):
    copy = tmp_path / "won"
    shutil.copytree(whole[0], copy)
    shutil.rmtree(copy / "export")
    decision = json.loads((copy / "evaluate/decision.json").read_text())
    (copy / "evaluate/decision.json").write_text(json.dumps({**decision, "winner": winner}))
    pipeline(copy, "stages=[export]")
    assert json.loads((copy / "export/export.json").read_text())["winner"] == winner
    assert (copy / "export/model/tokenizer.json").is_file()


def test_release_says_what_was_served(whole):
    release = json.loads((whole[0] / "verify/release.json").read_text())
    assert release["winner"] in ("sft", "dpo", "ppo")
    assert release["measured"]["success"]["n"] == 2


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo"])
def test_a_killed_stage_resumes_to_the_same_metrics(whole, tmp_path, stage):
    run_dir, _ = whole
    copy = tmp_path / "killed"
    shutil.copytree(run_dir, copy)
    order = DEFAULT
    for name in order[order.index(stage):]:
        shutil.rmtree(copy / name)
    process = subprocess.Popen([sys.executable, "-m", "training.pipeline", *SMALL, f"run_dir={copy}", MEASURED], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 300
    while not list((copy / f"{stage}.partial").rglob("checkpoint-[2-9]")):
        assert time.time() < deadline, "no checkpoint was written"
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (copy / stage).exists()
    made = pipeline(copy, MEASURED)
    assert f"{stage:<10} resuming" in made.stdout
    assert metrics(copy) == metrics(run_dir)


def test_killed_between_stages_it_goes_on(whole, tmp_path):
    run_dir, _ = whole
    copy = tmp_path / "between"
    shutil.copytree(run_dir, copy)
    for name in ("dpo", "evaluate", "export", "verify"):
        shutil.rmtree(copy / name)
    (copy / "dpo").mkdir()          # renamed into place, killed before the manifest
    made = pipeline(copy, MEASURED)
    assert "reward     current, skipped" in made.stdout
    assert metrics(copy) == metrics(run_dir)


@pytest.mark.parametrize(("overrides", "says"), [
    (["stages=[sft]"], "sft needs the output of prepare"), (["stages=[dpo]"], "run 'stages=[pretrain]' first"),
    (["data=jsonl", "data.conversations=/no/such.jsonl"], "data.conversations=/no/such.jsonl does not exist"), (["company=/no/pack"], "is no company pack"),
    (["stages=[export]"], "export needs the output of evaluate")])
def test_what_is_missing_is_said_in_one_line(tmp_path, overrides, says):
    made = pipeline(tmp_path / "run", *overrides, check=False)
    errors = [line for line in made.stderr.splitlines() if line.startswith("error: ")]
    assert made.returncode == 1
    assert says in errors[0]
    assert "Traceback" not in made.stderr


def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    """A limit on file sizes stands in for the disk: writing stops in the middle of a file with an OSError."""
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "training.pipeline", *SMALL, f"run_dir={run_dir}", "stages=[generate,anonymise]"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)))
    assert made.returncode == 1
    assert "free some space" in made.stderr
    assert "Traceback" not in made.stderr
    assert not (run_dir / "generate").exists(), "written whole or not at all"
    assert pipeline(run_dir, "stages=[generate,anonymise]").returncode == 0


def test_wandb_offline_needs_no_account_and_gets_no_text_of_customers(whole, tmp_path):
    run_dir, _ = whole
    copy = tmp_path / "tracked"
    pipeline(copy, f"reuse={run_dir}", "stages=[generate,anonymise,prepare,pretrain,sft]", "sft.trainer.max_steps=2", "tracking=wandb", "tracking.mode=offline")
    records = list(copy.glob("wandb/offline-run-*/*.wandb"))
    assert len(records) == 1, "one run for sft; pretrain was taken over"
    recorded = records[0].read_bytes()
    assert b"train/loss" in recorded
    said = [m["content"] for _, row in read_jsonl(copy / "prepare/sft/train.jsonl") for m in row["prompt"] if m["role"] == "user"]
    assert len(said) > 50
    assert not any(text.encode() in recorded for text in said if len(text) > 20)
    assert not any(text.encode() in path.read_bytes() for text in said[:50] if len(text) > 20 for path in copy.glob("wandb/**/*") if path.is_file())


def test_an_unwritable_run_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    made = pipeline(tmp_path / "file" / "run", check=False)
    assert "cannot write to" in made.stderr
    assert "Traceback" not in made.stderr


def test_another_company_replaces_the_first_entirely(tmp_path):
    """A second, tiny pack: one intent of its own, two tools, one language, and the pipeline runs on it."""
    pack = tmp_path / "bakery"
    (pack / "phrases").mkdir(parents=True)
    (pack / "unseen").mkdir()
    sentences = {"ask_loaf": ["Which loaf?"], "loaf_kept": ["I keep the <order.loaf> for you."], "handoff_baker": ["The baker comes."], "goodbye": ["Bye."]}
    words = {
        "greetings": ["Hi"], "closings": ["Thanks"], "openings": {"keep": ["{Keep|Please keep} me a loaf", "a loaf {for me|please}"], "baker": ["{get|call} the baker", "the baker please"]},
        "insist": {"default": ["please"]}, "give": {"loaf": ["the <loaf>", "<loaf> please"]}, "mention": {"loaf": ["the <loaf>"]}, "extra": ["I am <name>"],
        "change_of_mind": ["no:"], "again": ["again:"], "already_gave": ["again: <value>"], "thanks": ["thanks"], "accepts_no": ["ok"], "leaves": ["bye"]}
    language = {"locale": "en-IE", "customer": words, "agent": {"kind": sentences, "curt": sentences}, "summaries": {"baker": "Wants the baker."},
                "recognise": {"ask_loaf": "which loaf"}, "products": ["loaf"], "names": {"first": ["Una"], "last": ["Byrne"]}, "streets": ["Quay Street"]}
    files = {
        "pack.yaml": {"name": "Bakery", "languages": {"en": 1.0}, "merchants": {"seen": ["North"], "unseen": ["South"]}, "policies": {"opens": {"seen": [7], "unseen": [8]}},
                      "system": "Bakery <merchant>. Opens: <policy.opens>.", "public_identifiers": [], "business_numbers": [], "promises": {}, "mail_domains": ["example.com"],
                      "order": {"loaf": ["rye", "oat"], "kept": False}, "account": {}, "phones": {"en": "+353 20 910 ####"}, "arguments": {"loaf": "order.loaf"}},
        "tools.yaml": [{"name": "keep_loaf", "description": "Keep one.", "parameters": {"loaf": "string"}, "requires": {"no_such_loaf": "arguments.loaf == order.loaf"},
                        "effects": {"order.kept": "True"}, "returns": {"ok": "True"}},
                       {"name": "transfer_to_human", "description": "Call.", "parameters": {"reason": "string", "summary": "string"}, "effects": {"handoff.reason": "arguments.reason"}, "returns": {"ok": "True"}}],
        "scenarios.yaml": [{"name": "keep_one", "intent": "keep", "weight": 2, "steps": ["ask loaf", "call keep_loaf", "say loaf_kept"], "success": "order.kept and told(order.loaf)"},
                           {"name": "call_baker", "intent": "baker", "steps": ["handoff baker"], "success": "handoff.reason == 'baker'"}],
        "agents.yaml": [{"id": "b1", "style": "kind", "share": 1, "habits": {}}, {"id": "b2", "style": "curt", "share": 1, "habits": {"loops": 0.9}}],
        "raters.yaml": [{"id": "q", "severity": 0.0, "noise": 0.4, "share": 1}], "phrases/en.yaml": language, "unseen/en.yaml": {**language, "names": {"first": ["Nora"], "last": ["Daly"]}}}
    for name, content in files.items():
        (pack / name).write_text(yaml.safe_dump(content, sort_keys=False))
    pipeline(tmp_path / "run", f"company={pack}", "stages=[generate,anonymise,prepare,pretrain,sft,evaluate]", "model.vocab_size=400", "prepare.near_duplicate=0.99", "evaluate.candidates=[base,sft]")
    card = json.loads((tmp_path / "run/evaluate/scorecard.json").read_text())["candidates"]
    assert card["sft"]["success"]["n"] == 6
    talks = (tmp_path / "run/evaluate/talks/sft-unseen.jsonl").read_text()
    assert "keep_one" in talks
    assert "Brindle" not in talks


def test_the_table_of_stages_is_in_order():
    names = [stage.name for stage in STAGES]
    for stage in STAGES:
        assert all(names.index(need) < names.index(stage.name) for need in stage.needs), stage.name


@pytest.mark.slow
def test_told_to_stop_the_pipeline_takes_its_stage_with_it(tmp_path):
    """As a cluster or a container does it: the process alone is told, not its group."""
    running = subprocess.Popen([sys.executable, "-m", "training.pipeline", f"run_dir={tmp_path}/run", "generate.conversations=200000", "stages=[generate]"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def stages() -> list[psutil.Process]:
        return [child for child in psutil.Process(running.pid).children(recursive=True) if "--stage" in child.cmdline()]

    until = time.monotonic() + 60
    while not (found := stages()):
        assert time.monotonic() < until
        time.sleep(0.2)
    running.terminate()
    assert running.wait(40) == 130
    assert "the same command goes on from here" in running.stderr.read()
    psutil.wait_procs(found, 5)
    assert not any(stage.is_running() for stage in found)
