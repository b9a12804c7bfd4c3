"""The benchmark counts rightly: hits, misses, quarantine, labels of public data, the page, and one tiny run from end to end."""

from __future__ import annotations

import json
import os
import sys
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.anonymise import PUBLIC, main
from benchmarks.measure import public
from benchmarks.measure.bars import BARS, Bar, least_of, measured, misses, o_tokens, of_case, of_secret, shortfalls, verdict, was_touched
from benchmarks.measure.page import percent, picture, speed_bars, written
from benchmarks.measure.speed import blocks, one_core, process
from benchmarks.pii.sets import SETS
from benchmarks.pii.text import case, mark
from data_prep.artifacts import StageError
from data_prep.pii import fit

SECRET = Bar("T0", "mail", "made up", "case", of_case(lambda c: c["group"]), least=0.9, each={"": 0.4, "hard": 0.2})


def mail(group: str) -> dict:
    return case("made up", group, "en", "en-GB", [("user", f"write to {mark('email', 'a.b@mail.se')} please")])


def spans(found: list, released: bool = True) -> dict:
    return {"found": [found], "released": released, "reasons": [] if released else ["a leak"], "readable": []}


ALL, PART, NONE = [(9, 20, "email")], [(9, 12, "name")], []


@pytest.fixture
def row():
    """Four cases: found, found in part, quarantined though found, and missed in a hard group; another tool finds the first two."""
    cases = [mail("easy"), mail("easy"), mail("easy"), mail("hard")]
    ours = [spans(ALL), spans(PART), spans(ALL, released=False), spans(NONE)]
    return measured(SECRET, cases, ours, [{"other": [ALL]}, {"other": [ALL]}, {"other": [NONE]}, {"other": [NONE]}])


def test_quarantined_cases_are_neither_hit_nor_miss(row):
    assert row["all"] == {"ours": [1, 3], "detectors": [2, 4], "other": [2, 4]}
    assert row["groups"]["easy"] == {"ours": [1, 2], "detectors": [2, 3], "other": [2, 3]}
    assert row["quarantined"] == [1, 4]
    assert verdict(row) == "missed"


def test_what_falls_short_is_said(row):
    told = "\n".join(shortfalls(row))
    assert "0.333, the bar is ≥ 0.9" in told
    assert "hard 0.000" in told
    assert "easy 0.500 against 0.667 (other)" in told
    assert [least_of(row, group) for group in ("easy", "hard")] == [0.4, 0.2]


def test_a_group_that_never_got_out_is_named():
    row = measured(SECRET, [mail("easy"), mail("stuck")], [spans(ALL), spans(ALL, released=False)], [{}, {}])
    assert verdict(row) == "met"
    assert shortfalls(row) == ["T0, mail: of 1 groups nothing was released, so the figures above leave them out: stuck"]


def test_over_masking_is_bad_when_high():
    bar = Bar("T0", "negatives touched", "made up", "case", was_touched(lambda c: c["group"]), most=0.1)
    plain = case("made up", "order", "en", "en", [("user", "order 1234")])
    row = measured(bar, [plain, plain], [spans(NONE), spans([(6, 10, "number")])], [{}, {}])
    assert row["all"]["ours"] == [1, 2]
    assert verdict(row) == "missed"
    assert verdict({**row, "most": 0.5}) == "met"
    assert verdict({**row, "most": None}) == "–"


def test_secrets_are_counted_one_by_one_where_the_bar_says_so():
    two = case("made up", "en", "en", "en", [("user", f"{mark('email', 'a@b.se')} {mark('phone', '070')}")])
    assert list(of_secret(lambda c: c["group"])(two, [[(0, 6, "email")]])) == [("en", True), ("en", False)]


def test_slots_of_multidogo_are_runs_of_one_label(tmp_path):
    assert list(public.slots("im ram 12 34 ok", ["O", "name", "ssn", "ssn", "O"])) == [(0, 2, "O"), (3, 6, "name"), (7, 12, "ssn"), (13, 15, "O")]
    for domain in public.DOMAINS:
        for split in ("dev", "test"):
            path = tmp_path / public.DOGO / domain / f"{split}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('conversationId\tutterance\tslot-labels\nc1\tim ram\tO name\nc1\t12 34\tssn ssn\nc1\tbroken row\tO\nc2\thi "there\tO O\n')
    first, second = islice(public.multidogo(tmp_path), 2)
    assert [message["content"] for message in first["messages"]] == ["im ram", "12 34"]
    assert first["spans"] == [[0, 0, 2, "O"], [0, 3, 6, "name"], [1, 0, 5, "ssn"]]
    assert o_tokens(second, [[(0, 1, "name")]]) == [("finance", True), ("finance", False)]
    assert misses([first], [{"found": [[(3, 4, "name")], []], "released": True}]) == [("name, 1 word, a part masked", 1), ("ssn, 4 digits in 2 groups, nothing masked", 1)]


def test_people_of_uner_are_placed_in_their_sentence(tmp_path):
    (tmp_path / "uner/X").mkdir(parents=True)
    (tmp_path / "uner/X/sv_x-ud-test.iob2").write_text("# text = Ada Lovelace, inte Bo.\n1\tAda\tB-PER\n2\tLovelace\tI-PER\n3\t,\tO\n4\tinte\tO\n5\tBo\tB-PER\n6\t.\tO\n\n# text = Ja.\n1\tJa\tO\n")
    first, second = public.uner(tmp_path)
    assert [first["messages"][0]["content"][start:end] for _, start, end, _ in first["spans"]] == ["Ada Lovelace", "Bo"]
    assert first["language"] == "sv"
    assert not second["spans"]


def test_bare_years_and_weekdays_are_labelled_apart():
    assert [public.label_of("DATE_TIME", value) for value in ("1977", "friday", "2/8/1935")] == ["bare year or weekday", "bare year or weekday", "DATE_TIME"]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_data_reads_as_cases(name):
    data = os.environ.get("SUPPORTLOOP_DATA")
    part, read = PUBLIC[name]
    if reason := public.absent(Path(data) if data else None, part):
        pytest.skip(reason)
    for each in islice(read(Path(data)), 300):
        assert each["messages"]
        assert all(each["messages"][i]["content"][start:end].strip() for i, start, end, _ in each["spans"])


def test_turns_are_joined_to_texts_of_a_conversations_size():
    joined = list(blocks(["x" * 100] * 60))
    assert "".join(joined).count("x") == 6000
    assert all(2300 <= len(text) < 2500 for text in joined[:-1])


def test_a_process_is_measured_apart_from_its_parent():
    with one_core():
        used = process([sys.executable, "-c", "import sys; sys.stdin.read()"], ["a line\n"])
    assert 0 < used["peak_mb"] < 100
    assert used["wall"] > 0


@pytest.mark.slow
def test_a_tiny_run_from_end_to_end(tmp_path, capsys):
    main(["sets=structured,hard_negatives,kept,leaks", "size=1", f"held_out={fit.SHIPPED}", f"out={tmp_path}"])
    results = json.loads((tmp_path / "results.json").read_text())
    page = (tmp_path / "anonymise.md").read_text()
    assert {row["source"] for row in results["rows"]} == {"structured", "hard_negatives", "kept", "leaks"}
    assert results["rows"][0]["all"]["detectors"][1] == 113
    assert "| T1 | identifiers of 23 markets | ≥ 0.999 |" in page
    assert "not installed" in page
    assert str(tmp_path) not in page
    assert (tmp_path / "anonymise.svg").read_text().startswith("<svg ")
    assert "identifiers of 23 markets" in capsys.readouterr().err


def test_absent_data_is_said_on_the_page(tmp_path):
    results = main(["sets=synth,multidogo,uner", f"data={tmp_path}", f"out={tmp_path}"])
    assert set(results["skipped"]) == {"synth", "multidogo", "uner"}
    assert "Skipped: presidio-research: presidio_research/data/synth_dataset_v2.json is not in the given folder" in (tmp_path / "anonymise.md").read_text()


@pytest.mark.parametrize(("argument", "message"), [("set=kept", "unknown argument set=kept"), ("sets=keptt", "sets=keptt is unknown")])
def test_wrong_arguments_are_refused(argument, message):
    with pytest.raises(StageError, match=message):
        main([argument])


def test_the_slower_corpus_meets_the_speed_bar_or_it_is_missed(row):
    fast, slow = ({"texts": 1, "bytes": 10, "own_bytes": 10, "ours, structured": rate, "ours, full stage": 0.3} for rate in (2.0, 0.5))
    made = {"rates": {"a": {"by turn": fast, "by conversation": fast}, "b": {"by turn": slow, "by conversation": slow}}, "scaling": {"seconds": {"1": 2.0, "2": 1.0}, "cpu": {"1": 2.0, "2": 2.1}, "speed-up": 2.0, "load": 0.1, "conversations": 9},
            "footprints": {"ours": {"start_cpu": 0.5, "start_wall": 0.5, "start_mb": 90, "peak_mb": 400}}}
    verdicts = {what: met for what, _, _, met in speed_bars(made)}
    assert not verdicts["structured by turn, MB/s"]
    assert verdicts["full stage, MB/s"]
    assert verdicts["start-up, CPU s"]
    assert not verdicts["peak memory, MB"]
    facts = {"command": "x", "date": "2026-01-01", "minutes": 1.0, "processors": 2, "machine": "x", "versions": {}, "artefact": "0", "presidio": None}
    results = {"made": facts, "rows": [row], "skipped": {}, "speed": made}
    assert "T11, peak memory, MB: 400.00, the bar is ≤ 300" in written(results)
    assert "33.3 % [6.1, 79.2]" in written(results)
    assert picture(results).count("supportloop") >= 1


@pytest.mark.parametrize(("pair", "text"), [([9999, 10000], "99.99 %"), ([99999, 100000], "> 99.99 %"), ([1, 100000], "< 0.01 %"), ([3, 3], "100.0 %"), ([0, 5], "0.0 %"), ([0, 0], "–"), (None, "–")])
def test_no_share_is_rounded_to_all_or_nothing(pair, text):
    assert percent(pair) == text


def test_every_bar_reads_a_set_that_exists():
    assert {bar.source for bar in BARS} <= set(SETS) | set(PUBLIC)
