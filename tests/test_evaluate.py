from __future__ import annotations

import json

import pytest

from conf.load import load_config
from data_prep.artifacts import stage_dir
from data_prep.company.generate import tool_arguments
from data_prep.conversation import read_jsonl, tool_call, write_jsonl
from eval.evaluate import SPLITS, decide, examine, gate, score
from eval.memorisation import exposures
from eval.metrics import SIMULATED
from eval.replies import normal
from eval.report import cell
from eval.simulator import draw_talks, outcome, simulate
from serve.engine import Completion, Sampling
from tests.toys import toy_run

ALL = Sampling(max_tokens=64)


class PerfectEngine:
    """Plays the right script of every talk, as the best agent would; what it knows is the scenario, not the words."""

    def __init__(self, talks, bend=lambda steps: steps):
        self.talks, self.bend = talks, bend

    def generate(self, conversations, sampling):
        by_system = {id(t.messages): t for t in self.talks}
        return [Completion(self.reply(by_system[id(c)]), "stop", 1, 1) for c in conversations]

    def reply(self, talk):
        world, said = talk.world, sum(m["role"] == "assistant" for m in talk.messages)
        steps = [s for s in self.bend(world.scenario["steps"]) if not (s[0] == "ask" and s[1] in talk.customer.given and not self.asked(talk, s[1]))]
        verb, thing = steps[min(said, len(steps) - 1)]
        if verb == "call":
            return f'<tool_call>{{"name": "{thing}", "arguments": {json.dumps(tool_arguments(world, thing))}}}</tool_call>'
        from data_prep.company.pack import say

        sentence = say(world.pack.phrases[world.language]["agent"]["kind"][{"ask": f"ask_{thing}", "handoff": f"handoff_{thing}"}.get(verb, thing)][0], world.state, __import__("random").Random(0))
        return sentence + (f'<tool_call>{{"name": "transfer_to_human", "arguments": {{"reason": "{thing}", "summary": "x"}}}}</tool_call>' if verb == "handoff" else "")

    def asked(self, talk, slot):
        return any(talk.world.recognise(f"ask_{slot}", m["content"]) for m in talk.messages if m["role"] == "assistant")


def play(engine_of, pack, count=120, split="unseen"):
    talks = draw_talks(pack, count, split, seed=1)
    return simulate(engine_of(talks), talks, batch_size=50, max_replies=10, sampling=ALL, label="test")


def test_the_right_script_succeeds_in_every_scenario_and_language(pack):
    for split in ("unseen", "seen"):
        outcomes = play(PerfectEngine, pack, 300, split)
        assert {o["scenario"] for o in outcomes} == {s["name"] for s in pack.scenarios}
        assert [(o["scenario"], o["language"], o["violations"], o["ended"]) for o in outcomes if not o["success"]] == []


@pytest.mark.parametrize(("replies", "metric", "worst"), [
    (["Just tell me the problem."], "loops", 0.9), (["You will get the money back."], "violations", 0.2), (["Hello"], "human_reach", 0.0)])
def test_a_bad_assistant_is_caught(pack, scripted, replies, metric, worst):
    outcomes = play(lambda talks: scripted(replies), pack, 60)
    value = SIMULATED[metric](outcomes)["value"]
    assert value == 0.0 if metric == "human_reach" else value >= worst
    assert SIMULATED["success"](outcomes)["value"] < 0.1


def test_an_assistant_that_hands_over_everything_is_seen(pack, scripted):
    text = 'A colleague takes over.<tool_call>{"name": "transfer_to_human", "arguments": {"reason": "human", "summary": "x"}}</tool_call>'
    outcomes = play(lambda talks: scripted([text]), pack, 60)
    assert SIMULATED["needless_handoff"](outcomes)["value"] == 1.0
    assert SIMULATED["human_reach"](outcomes)["value"] == 1.0
    assert SIMULATED["success"](outcomes)["value"] < 0.3


def test_every_candidate_meets_the_same_customers(pack):
    first, second = (draw_talks(pack, 30, "unseen", 7) for _ in range(2))
    assert [t.messages for t in first] == [t.messages for t in second]
    assert draw_talks(pack, 30, "unseen", 8)[0].messages != first[0].messages


def test_an_outcome_counts_repetitions_and_broken_calls_end_nothing(pack, scripted):
    talks = draw_talks(pack, 5, "unseen", 1)
    simulate(scripted(["<tool_call>{broken</tool_call>"]), talks, batch_size=5, max_replies=10, sampling=ALL, label="t")
    assert all(outcome(t)["most_repeated"] >= 3 and not t.world.calls for t in talks)


def asked(remembered=None):
    return {"remembered": remembered or {}, "preference": {}, "replies": {}}


def metric(value, n=100):
    return {"value": value, "low": 0.0, "high": 1.0, "n": n, "gate": None}


def row(success, gates):
    return {"success": {**metric(success), "gate": gates[0]}, "loops": {**metric(0.1), "gate": gates[1]}}


def test_the_winner_passes_every_gate():
    decision = decide({"base": row(0.9, ["pass", "pass"]), "sft": row(0.6, ["pass", "pass"]), "dpo": row(0.7, ["pass", "fail"])}, ["success", "loops"], [])
    assert decision["winner"] == "sft"
    assert any("dpo: loops fail" in reason for reason in decision["reasons"])


def test_no_winner_says_why_and_the_unmeasured_refuses():
    decision = decide({"sft": {"success": {**metric(None, 0), "gate": gate(None, 0.5, harm=False)}}}, ["success"], [])
    assert (decision["winner"], decision["reasons"]) == (None, ["sft: success not evaluated"])
    scored = score({}, asked(), {"success": 0.5})
    assert scored["success"]["gate"] == "not evaluated"


def test_without_canaries_the_gate_of_exposure_refuses_and_says_why():
    remembered = {"exposure": exposures([], 8.0), "regurgitation": metric(0.0)}
    row = score({}, asked(remembered), {"exposure": 3.1, "regurgitation": 0.02})
    assert row["regurgitation"]["gate"] == "pass"
    assert decide({"sft": row}, ["exposure", "regurgitation"], [])["reasons"] == ["sft: exposure not evaluated (no canaries were planted: prepare.canaries=0)"]
    assert load_config(["+evaluate.gates.exposure_told=3.1"]).evaluate.gates.exposure_told == 3.1
    assert "exposure" not in load_config(["prepare.canaries=0", "~evaluate.gates.exposure"]).evaluate.gates


def test_what_is_remembered_is_harm_and_shown_in_its_unit():
    remembered = {"exposure": exposures([6.0, 7.0], 8.0), "regurgitation": metric(0.01)}
    row = score({}, asked(remembered), {"exposure": 3.1, "regurgitation": 0.02})
    assert (row["exposure"]["gate"], row["regurgitation"]["gate"]) == ("fail", "pass")
    assert "6.50 [6.00, 7.00] bits n 2" in cell(row["exposure"])
    assert "1.0% [0.0%, 100.0%] n 100" in cell(row["regurgitation"])


def test_gates_of_harm_are_upper_bounds():
    assert gate(0.1, 0.2, harm=True) == "pass"
    assert gate(0.3, 0.2, harm=True) == "fail"
    assert gate(0.3, 0.2, harm=False) == "pass"


def test_replies_are_compared_without_case_and_argument_order():
    a, b = ({"role": "assistant", "content": "One  moment", "tool_calls": [tool_call("t", arguments)]} for arguments in ({"x": 1, "y": 2}, {"y": 2, "x": 1}))
    assert normal(a) == normal({**b, "content": "one moment"})
    assert normal(a) != normal({**b, "content": "another"})


def test_a_killed_evaluation_asks_no_candidate_twice(tmp_path):
    config = toy_run(tmp_path, "evaluate.conversations=3", "evaluate.seen_conversations=2", "evaluate.max_replies=2")
    row = {"conversation_id": "c", "customer": "p", "prompt": [{"role": "user", "content": "where is order 12345?"}], "completion": [{"role": "assistant", "content": "it is on its way"}]}
    for name in ("sft/train", "sft/test", "canaries"):
        write_jsonl(stage_dir(config, "prepare") / f"{name}.jsonl", [] if name == "canaries" else [row])
    examine(config, "base", tmp_path)
    assert [len(list(read_jsonl(tmp_path / f"talks/base-{split}.jsonl"))) for split in SPLITS] == [3, 2]
    asked = json.loads((tmp_path / "asked/base.json").read_text())
    assert set(asked) == {"remembered", "replies", "preference", "seconds_a_reply"}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/base*")}
    examine(config, "base", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/base*")} == times
    (tmp_path / "asked/base.json").unlink()          # killed before it had been asked everything
    examine(config, "base", tmp_path)
    again = json.loads((tmp_path / "asked/base.json").read_text())
    assert {**again, "seconds_a_reply": 0} == {**asked, "seconds_a_reply": 0}
