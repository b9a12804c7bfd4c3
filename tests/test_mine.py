"""A pack mined from an archive loads, plays, and is kept from what was edited."""

from __future__ import annotations

import json
import random

import pytest

from data_prep.company.generate import archive, converse
from data_prep.company.mine import MineError, facts, main, pack_of
from data_prep.company.pack import load_pack
from data_prep.company.talk import draw_talk
from data_prep.company.world import draw_world
from data_prep.conversation import write_jsonl


@pytest.fixture(scope="module")
def run(pack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine") / "run"
    made = [c for c, _, _ in archive(pack, 900, 4, 0.0)]
    write_jsonl(folder / "anonymise/conversations.jsonl", made)
    write_jsonl(folder / "prepare/sft/test.jsonl", [{"conversation_id": c["id"]} for c in made[:700]])
    return folder


def test_a_mined_pack_loads_and_plays(run, tmp_path, capsys):
    out = tmp_path / "mine"
    assert main([f"run={run}", f"out={out}", "least=12"]) == 0
    assert "Now edit it" in capsys.readouterr().out
    mined = load_pack(str(out))
    assert {"return", "human", "cancel"} <= {s["intent"] for s in mined.scenarios}
    assert "get_order" in mined.tools
    by_name = {s["name"]: s for s in mined.scenarios}
    assert ("call", "get_order") in by_name["return"]["steps"]
    assert by_name["fraud"]["steps"][-1] == ("handoff", "human"), "where mostly a person took over"
    talk = draw_talk(mined, 1, "unseen", 0)
    assert talk.messages[1]["role"] == "user"
    won = 0
    for scenario in mined.scenarios:
        world = draw_world(mined, scenario, next(iter(mined.languages)), "seen", random.Random(0))
        converse(world, mined.agents[0], random.Random(0), 0.0)
        won += world.succeeded()
    assert won == len(mined.scenarios), "who does the steps succeeds"


def test_training_and_evaluation_get_other_customers_openings(run, tmp_path):
    main([f"run={run}", f"out={tmp_path / 'p'}", "least=12"])
    mined = load_pack(str(tmp_path / "p"))
    for code in mined.languages:
        for intent, openings in mined.phrases[code]["customer"]["openings"].items():
            assert openings
            assert not set(openings) & set(mined.unseen[code]["customer"]["openings"][intent]) or len(openings) < 3


def test_what_was_edited_is_not_written_over(run, tmp_path, capsys):
    (tmp_path / "p").mkdir()
    assert main([f"run={run}", f"out={tmp_path / 'p'}"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([f"run={tmp_path}", f"out={tmp_path / 'q'}"]) == 1
    assert "stages=[anonymise,prepare]" in capsys.readouterr().err


def test_nothing_of_a_template_gets_into_a_wording():
    fact = facts({"id": "c", "outcome": {"intent": "Where is it?"}, "messages": [{"role": "user", "content": "my {thing|x} <name>"}, {"role": "assistant", "content": "it is {here}"}]})
    assert fact["intent"] == "where_is_it"
    files = pack_of([fact] * 4, "x", 2)
    assert json.dumps(files["phrases/en.yaml"]).count("{thing") == 0
    with pytest.raises(MineError, match="no intent has 9"):
        pack_of([fact] * 4, "x", 9)
    assert facts({"id": "c", "messages": [{"role": "user", "content": "hi"}]}) is None
