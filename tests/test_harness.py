"""lm-evaluation-harness asks a running endpoint the questions of `eval/harness`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from eval.harness.docs import mentions, names_person, requests, whether_human
from serve.cues import languages
from serve.handoff import policy_of
from tests.serving import saying


def test_every_language_has_its_requests_and_the_companys_have_the_rest(pack):
    assert set(requests()["test"]["language"]) == set(languages())
    assert set(mentions()["test"]["language"]) == set(whether_human()["test"]["language"]) == set(pack.languages)
    assert all("Brindle Pay" in system for system in requests()["test"]["system"])


@pytest.mark.parametrize("code", sorted(languages()))
def test_a_handoff_names_a_person_in_every_language(code):
    assert names_person(languages()[code].say["human"], code)


@pytest.mark.slow
def test_lm_eval_tells_an_endpoint_with_the_guard_from_one_without(tmp_path, pack):
    pytest.importorskip("lm_eval", reason="make test-extras installs lm-evaluation-harness")
    found = {}
    for guarded in (True, False):
        with saying(["Please give me your order number."], policy=policy_of(pack) if guarded else None) as url:
            done = subprocess.run([sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions", "--model_args", f"model=supportloop,base_url={url}/chat/completions", "--apply_chat_template",
                                   "--include_path", "eval/harness", "--tasks", "supportloop", "--limit", "60", "--output_path", str(tmp_path / f"{guarded}.json")], capture_output=True, text=True, timeout=300)
        assert not done.returncode, done.stderr[-2000:]
        results = json.loads(next(tmp_path.glob(f"{guarded}*.json")).read_text())["results"]
        found[guarded] = {task.removeprefix("supportloop_"): cell["acc,none"] for task, cell in results.items()}
    assert found[True]["requests"] > 0.8
    assert found[True]["whether_human"] > 0.5
    assert found[False] == {"requests": 0.0, "mentions": 1.0, "whether_human": 0.0}
