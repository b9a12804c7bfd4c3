"""The held-out sets of the anonymisation stage are sound: spans point at what they say, numbers are valid, seeds repeat."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from functools import cache
from pathlib import Path

import phonenumbers
import pytest
from stdnum import iban, luhn

from benchmarks.pii import national, score
from benchmarks.pii.conversations import LANGUAGES
from benchmarks.pii.names import FIRST, LAST, entries, is_held_out
from benchmarks.pii.sets import MAIN, MARKETS, SETS, names_unknown, structured
from benchmarks.pii.text import KINDS, load, mark, spans

FOLDER = Path(inspect.getfile(structured)).parent
LEAST = {"structured": 3000, "adversarial": 1200, "hard_negatives": 500, "names_known": 400, "names_unknown": 1500, "name_free": 1500, "split_over_turns": 150, "all_languages": 740, "kept": 300, "leaks": 500}


@cache
def drawn(name: str) -> list[dict]:
    return list(SETS[name](n=30) if name == "structured" else SETS[name]())


def secrets(case: dict) -> list[tuple[str, str]]:
    return [(case["messages"][i]["content"][start:end], kind) for i, start, end, kind in case["spans"]]


def digits(text: str) -> str:
    return re.sub(r"\D", "", text)


@pytest.mark.parametrize("name", SETS)
def test_sizes_and_distinct_texts(name):
    cases = drawn(name)
    texts = {str(case.get("messages") or case["leaky"]) for case in cases}
    assert len(cases) >= LEAST[name]
    assert len(texts) >= 0.95 * len(cases)


@pytest.mark.parametrize("name", SETS)
def test_the_seed_decides_everything(name):
    small = {"n": 3} if name != "name_free" else {"n": 10, "others": 5}
    assert list(SETS[name](seed=7, **small)) == list(SETS[name](seed=7, **small)) != list(SETS[name](seed=8, **small))


@pytest.mark.parametrize("name", [name for name in SETS if name != "leaks"])
def test_cases_are_well_formed(name):
    for case in drawn(name):
        assert case["set"] == name
        assert all(message["role"] in ("user", "assistant") and message["content"].strip() for message in case["messages"])
        assert not any(c in message["content"] for message in case["messages"] for c in "⟦⟧")
        assert not re.search(r"<(x|label|word|p|b|c|d|m|first|last|full|\d)>", str(case["messages"]))
        for text, kind in secrets(case):
            assert kind in KINDS
            assert any(c.isalnum() for c in text)
            assert text == text.strip()
        assert all(case["messages"][i]["content"][start:end].strip() for i, start, end in case["keep"])
        assert bool(case["spans"]) == (name not in ("hard_negatives", "name_free")) or "(keep)" in case["group"]


def test_structured_values_are_valid():
    for case in drawn("structured"):
        (text, kind), market = secrets(case)[0], case["group"].split()[1]
        assert case["group"].startswith(kind)
        if kind == "card":
            assert luhn.is_valid(digits(text))
            assert 12 <= len(digits(text)) <= 19
        elif kind == "iban":
            assert iban.is_valid(text)
            assert text[:2].upper() == market
        elif kind == "phone":
            assert phonenumbers.is_valid_number(phonenumbers.parse(text.replace("00", "+", 1) if case["style"].startswith("zeros") else text, market)), text
        elif kind == "email":
            assert re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", text)
            assert "example" not in text
        else:
            assert national.is_valid(market, text), text


def test_structured_covers_every_kind_market_brand_and_writing():
    groups = Counter(case["group"] for case in drawn("structured"))
    assert len(groups) == 5 * len(MARKETS) - 2
    assert len(MARKETS) == 23
    lengths = {len(digits(secrets(case)[0][0])) for case in drawn("structured") if case["group"].startswith("card")}
    assert lengths == set(range(12, 20))
    styles = {case["style"].removesuffix(", followed") for case in drawn("structured")}
    assert {"plain", "spaced", "dashed", "lower", "lower spaced", "national", "international", "e164", "compact", "capitals"} <= styles


def test_carriers_are_many():
    for language, kinds in load("carriers").items():
        assert set(kinds) == {"follow", "card", "iban", "email", "phone", "national_id"}, language
        assert all(len(spec["cue"]) + len(spec["bare"]) >= 6 for kind, spec in kinds.items() if kind != "follow"), language
    assert len(load("carriers")) == 17


def test_the_hungarian_and_british_numbers_follow_the_published_rules():
    assert national.taj_digit("11111111") == "0"        # 4 * 3 + 4 * 7 = 40
    assert national.is_valid("GB", "AA 12 34 56 C")
    assert not national.is_valid("GB", "QQ 12 34 56 C")
    assert not national.is_valid("GB", "GB 12 34 56 C")


def test_adversarial_groups():
    groups = Counter(case["group"] for case in drawn("adversarial"))
    assert len(groups) >= 25
    assert min(groups.values()) >= 20
    assert sum(group.startswith("digits in words") for group in groups) >= 10


def test_hard_negatives_in_many_languages_and_kinds():
    cases = drawn("hard_negatives")
    assert len({case["language"] for case in cases}) >= 6
    assert {case["group"] for case in cases} == set(load("negatives")["kinds"])
    assert not any("@" in case["messages"][0]["content"] for case in cases if case["group"] != "hashtag")


@cache
def listed(language: str, which: tuple) -> set[str]:
    return {name.casefold() for locale in load("names")[language]["locales"] for name in entries(locale, which)}


def test_unknown_names_are_held_out():
    for case in drawn("names_unknown"):
        first, last = (listed(case["language"], which) for which in (FIRST, LAST))
        for text, _ in secrets(case):
            text = text.casefold()
            cuts = [(text[:m.start()], text[m.end():]) for m in re.finditer(" ", text)]
            pairs = cuts + [pair[::-1] for pair in cuts]
            assert (text in first | last and is_held_out(text)) or any(a in first and b in last and is_held_out(a) and is_held_out(b) for a, b in pairs), text


def test_unknown_names_stand_where_they_do_in_chats():
    cases = list(names_unknown(n=400))
    positions = Counter(case["group"].split()[1] for case in cases)
    weights = load("names")["weights"]
    assert all(abs(positions[p] / len(cases) - weights[p] / sum(weights.values())) < 0.03 for p in weights)
    assert {case["group"].split()[2] for case in cases} == {"cased", "lower"}
    assert all(message["content"] == message["content"].lower() for case in cases if case["group"].endswith("lower") for message in case["messages"])
    for language, words in load("names").items():
        if language != "weights":
            assert len({line for position in weights for line in words[position]}) >= 25, language


def test_name_free_turns_are_free_of_names():
    for case in drawn("name_free"):
        names = listed(case["language"], FIRST) - {word.casefold() for word in load("free")[case["language"]]["common"]}
        found = names & set(re.findall(r"[^\W\d_]+", case["messages"][0]["content"].casefold()))
        assert not found, case["messages"]
    assert all(len(words["turns"]) >= (60 if language in MAIN else 25) for language, words in load("free").items())
    assert set(load("free")) == set(load("names")) - {"weights"}


def test_every_language_is_there():
    wanted = "ar bg ca cs da de el en es et eu fi fr ga gl he hr hu is it lt lv mk mt nl no pl pt ro ru sk sl sq sr sv tr uk"
    assert " ".join(sorted({case["group"] for case in drawn("all_languages")})) == wanted == " ".join(sorted(LANGUAGES))
    for case in drawn("all_languages"):
        for text, kind in secrets(case):
            assert {"card": lambda t: luhn.is_valid(digits(t)), "iban": iban.is_valid, "email": lambda t: "@" in t, "phone": lambda t: len(digits(t)) >= 6}[kind](text), text


def test_secrets_come_in_pieces_over_several_turns():
    assert all(len({i for i, *_ in case["spans"]}) > 1 for case in drawn("split_over_turns") if case["group"] != "e-mail in halves")
    assert all(len(case["messages"]) > 1 for case in drawn("split_over_turns"))


def test_kept_pieces_stand_beside_a_secret():
    assert all(len(case["keep"]) >= 4 and len(case["spans"]) == 1 for case in drawn("kept"))


def test_leaks_are_in_the_leaky_text_only():
    for pair in drawn("leaks"):
        assert any(pair["leak"] in text for text in pair["leaky"])
        assert not any(pair["leak"] in text for text in pair["clean"])
        assert not any(part in text for text in pair["clean"] for part in (*pair["customer"]["name"].split(), pair["customer"]["email"], pair["customer"]["phone"], pair["customer"]["address"]))
        assert all(re.search(r"@example\.(com|org|net)$", mail) for text in pair["clean"] for mail in re.findall(r"\S+@[\w.]*\w", text))
    assert {pair["kind"] for pair in drawn("leaks")} == {"card", "iban", "email", "phone", "national_id", "name", "secret"}


def test_marks_give_spans():
    assert spans(f"a {mark('card', '12')} b {mark('keep', 'c')}") == ("a 12 b c", [(2, 4, "card"), (7, 8, "keep")])


CASE = {"messages": [{"role": "user", "content": "Anna Berg, 4111 1111 1111 1111, order 77"}], "spans": [[0, 0, 9, "name"], [0, 11, 30, "card"]], "keep": [[0, 38, 40]]}


def test_masked_asks_for_every_letter_and_digit():
    assert score.masked(CASE, [[(0, 4), (5, 9), (11, 30)]])
    assert not score.masked(CASE, [[(0, 8), (11, 30)]])
    assert not score.masked(CASE, [[]])
    assert score.untouched(CASE, [[(0, 39)]]) == (0, 1)
    assert score.touched(CASE, [[(0, 39)]])
    assert not score.touched(CASE, [[(0, 30)]])
    assert score.touched({**CASE, "spans": []}, [[(0, 2)]])


@pytest.mark.parametrize(("output", "kinds"), [
    ("Ida Holm, 4000 0000 0000 0002, order 77", []), ("Anna Holm, 4000 0000 0000 0002, order 77", ["name"]), ("ida BERG, [CARD], order 77", ["name"]),
    ("Ida Holm, x1111-11x, order 77", ["card"]), ("Annabel Bergman, [CARD], order 77", []), ("Ida Holm, ending 1111, order 77", [])])
def test_what_survives_in_the_text_given_back(output, kinds):
    assert [kind for kind, _ in score.survives(CASE, [output])] == kinds
    assert score.untouched_text(CASE, [output]) == (1, 1)


def test_what_was_said_anyway_is_no_leak():
    case = {"messages": [{"role": "user", "content": "Will will pick it up"}], "spans": [[0, 0, 4, "name"]], "keep": []}
    assert score.survives(case, ["Ida will pick it up"]) == []
    assert score.survives(case, ["Will will pick it up"]) == [("name", "will")]


@pytest.mark.parametrize("name", ["structured", "names_known", "names_unknown", "split_over_turns", "all_languages", "kept"])
def test_an_untouched_conversation_leaks_and_an_empty_one_does_not(name):
    for case in drawn(name)[::7]:
        if any(len(re.sub(r"\W", "", text)) >= 6 for text, _ in secrets(case)):
            assert score.survives(case, [message["content"] for message in case["messages"]]), case
        assert not score.survives(case, ["" for _ in case["messages"]])


def test_the_table_has_intervals():
    rows = score.table([("a", True), ("a", False), ("b", True)])
    assert [(row["group"], row["n"], row["successes"]) for row in rows] == [("a", 2, 1), ("b", 1, 1), ("all", 3, 2)]
    assert all(row["low"] <= row["share"] <= row["high"] for row in rows)
    assert score.text_table(rows).count("\n") == 4


def test_the_sets_know_no_detector():
    for path in FOLDER.glob("*.py"):
        modules = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not {module for module in modules if module.startswith("data_prep") and module != "data_prep.statistics"}, path.name
        assert len(path.read_text().splitlines()) <= 320, path.name
