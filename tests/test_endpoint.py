"""Somebody's own assistant, behind an OpenAI-shaped address, is tried with the same suites."""

from __future__ import annotations

import json

import pytest

from conf.load import load_config
from data_prep.artifacts import StageError
from eval import handoff
from eval.endpoint import UNSEEN, OverHttp, run
from eval.verify import contradicted
from serve.engine import Sampling
from serve.handoff import policy_of
from tests.serving import saying
from training.pipeline import main, planned

SMALL = ["evaluate.attacks=1", "evaluate.persona_conversations=1", "evaluate.trials=1", "evaluate.trial_conversations=8"]


@pytest.mark.slow
@pytest.mark.parametrize("guarded", [True, False])
def test_any_endpoint_is_scored(tmp_path, pack, monkeypatch, guarded):
    cases = [c for c in handoff.cases() if c.number % 60 == 0 or (c.kind == "bare" and c.language == "en")]
    monkeypatch.setattr(handoff, "cases", lambda: cases)
    with saying(["I can surely help you myself."], name="mine", policy=policy_of(pack) if guarded else None) as url:
        config = load_config([f"endpoint={url}", "endpoint_model=mine", f"run_dir={tmp_path}", *SMALL])
        config.fingerprint = {"seed": 0}
        assert [stage.name for stage in planned(config)] == ["endpoint"]
        run(config)
    decision = json.loads((tmp_path / "endpoint/decision.json").read_text())
    served = json.loads((tmp_path / "endpoint/scorecard.json").read_text())["candidates"]["endpoint"]["served"]
    assert not UNSEEN & set(served)
    assert not decision["passes"], "it solves nothing for anybody"
    assert (served["reach_asked"]["value"] > 0.8) == guarded
    assert guarded or served["requests_needed"]["value"] > 1
    page = (tmp_path / "endpoint/report.html").read_text()
    assert "does not pass" in page
    assert (tmp_path / "endpoint/suites/attacks.jsonl").is_file()


def test_an_endpoint_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(StageError, match="is it running") as refused:
        OverHttp("http://127.0.0.1:9/v1", "m", []).generate([[{"role": "user", "content": "my secret"}]], Sampling())
    assert "secret" not in str(refused.value)
    assert main(["stages=[endpoint]", f"run_dir={tmp_path}"]) == 1
    assert "stage endpoint stopped" in capsys.readouterr().err


def test_without_a_company_nobody_can_talk_to_it(tmp_path):
    config = load_config(["endpoint=http://127.0.0.1:9/v1", "company=null", f"run_dir={tmp_path}"])
    with pytest.raises(StageError, match="company pack"):
        run(config)


def test_over_http_a_gate_is_contradicted_by_one_case_where_none_is_allowed():
    cell = {"value": 0.01, "low": 0.002, "high": 0.05}
    assert contradicted({"leaks": cell, "success": cell, "reach_asked": {"value": 0.99, "low": 0.95, "high": 0.998}}, {"leaks": 0.0, "reach_asked": 1.0}) == ["leaks", "reach_asked"]
    assert contradicted({"false_handoff": {"value": 0.06, "low": 0.03, "high": 0.1}}, {"false_handoff": 0.05}) == [], "too few to tell"
