"""How replies fare beside the agents', predicted CSAT, and the business view."""

from __future__ import annotations

import json

import pytest

from data_prep.artifacts import StageError, stage_dir
from data_prep.company.generate import archive
from data_prep.conversation import write_json
from eval import business, csat
from eval.preference import judged, preferred, rewarded, verdict
from tests.serving import saying
from tests.toys import toy_run
from training.models import load_tokenizer


def test_preference_is_a_share_with_ties_as_halves_and_length_taken_out():
    found = preferred([(1.0, 0)] * 30 + [(0.5, 0)] * 20 + [(0.0, 0)] * 50)
    assert found["value"] == pytest.approx(0.4)
    assert found["ties"] == 0.2
    assert found["at_equal_length"] == pytest.approx(0.4, abs=0.02)
    longer = preferred([(1.0, 20)] * 60 + [(0.0, -20)] * 60 + [(1.0, 0)] * 10 + [(0.0, 0)] * 30)
    assert longer["at_equal_length"] < longer["value"], "what is liked for being long does not count"
    assert preferred([])["value"] is None


def test_a_judge_who_changes_with_the_order_makes_a_tie():
    assert [verdict("A", "B"), verdict("B", "A"), verdict("A", "A"), verdict("TIE", "B")] == [1.0, 0.0, 0.5, 0.5]


def judge(fair):
    """Prefers what says sorry, wherever it stands; or always the first."""
    def of(prompt: str) -> str:
        a, b = prompt.split("\n\nA: ")[1].split("\n\nB: ")
        return "A" if not fair or "sorry" in a else "B" if "sorry" in b else "tie"

    return of


ROWS = [{"prompt": [{"role": "user", "content": "my lamp is broken"}], "completion": [{"role": "assistant", "content": "Order number?"}]}] * 3
WRITTEN = [{"role": "assistant", "content": "I am sorry. What is the number?"}] * 3


def test_an_llm_judge_is_asked_in_both_orders():
    for fair, value in ((True, 1.0), (False, 0.5)):
        with saying(judge(fair), name="judge", max_tokens=4096) as url:
            assert [win for win, _ in judged(url, "judge", ROWS, WRITTEN)] == [value] * 3
    with pytest.raises(StageError, match="did not answer"):
        judged("http://127.0.0.1:9/v1", "judge", ROWS[:1], WRITTEN[:1])


def test_the_held_out_reward_model_compares(tmp_path):
    config = toy_run(tmp_path)
    rows = [{"prompt": [{"role": "user", "content": f"where is order {n}?"}], "completion": [{"role": "assistant", "content": "Order number?"}]} for n in range(6)]
    same = [{"role": "assistant", "content": "order  number?"}] * 6
    tokenizer = load_tokenizer(config)
    assert [win for win, _ in rewarded(config, tokenizer, rows, same)] == [0.5] * 6, "the same reply is a tie"
    other = rewarded(config, tokenizer, rows, [{"role": "assistant", "content": "It is on its way."}] * 6)
    back = rewarded(config, tokenizer, [{**row, "completion": [{"role": "assistant", "content": "It is on its way."}]} for row in rows], [{"role": "assistant", "content": "Order number?"}] * 6)
    assert [a + b for (a, _), (b, _) in zip(other, back, strict=True)] == [1.0] * 6, "whichever of them is called the assistant's"
    write_json(stage_dir(config, "reward") / "gate.json", {"passed": False, "checks": [], "why": "x"})
    assert rewarded(config, tokenizer, rows, same) == [], "one that failed its gate judges nothing"


def test_predicted_csat_follows_the_thumbs_and_is_calibrated(pack):
    made = list(archive(pack, 1500, 0, 0.0))
    learned = csat.learn([c for c, _, _ in made], [f for _, notes, _ in made for f in notes])
    assert learned.n > 200
    assert learned.ece < 0.1
    thumbs = {f["conversation_id"]: f["thumb"] for _, notes, _ in made for f in notes if f["kind"] == "thumb"}
    up, down = (learned.of([c["messages"] for c, _, _ in made if thumbs.get(c["id"]) == kind])["value"] for kind in ("up", "down"))
    assert up > down + 0.1
    assert csat.learn([c for c, _, _ in made[:50]], []) is None


def test_the_business_view_counts_what_it_says():
    talks = [{"handed_off": h, "success": s, "replies": 2, "language": "en", "messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]} for h, s in ((True, True), (False, True), (False, False))]
    found = business.containment(talks)
    assert found == {"contained": (2, 3), "resolved": (1, 3), "false containment": (1, 2)}
    seconds = business.handle_seconds(talks[0]["messages"], 0.5)
    assert seconds == pytest.approx(2 / business.TYPING + 1 / business.READING + 0.5)
    assert business.handle_seconds(talks[0]["messages"], None) > seconds - 0.5
    asked = [{"kind": "requests", "language": code, "served": True} for code in ("en", "fr")]
    lines = business.rows(talks, [talks[0]["messages"]], 0.5, {"handoff": asked}, None)
    assert any("a person in 2" in line[2] for line in lines)
    assert all(len(line) == 5 for line in lines)
    assert json.dumps(lines)
