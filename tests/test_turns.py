"""The turns the tagger of names is taught with: sized, filled, and named or free of names as their list says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

TURNS = Path(__file__).parents[1] / "data_prep/pii/turns.yaml"
FULL = ["en", "de", "fr", "es", "it", "nl", "sv", "da", "no", "fi", "pt", "pl", "cs", "hu", "tr", "el", "ro"]
HALF = ["bg", "hr", "sk", "sl", "et", "lv", "lt", "uk", "ru", "ca", "is", "sr"]
SIZES = {"customer_named": 25, "agent_named": 25, "free_customer": 50, "free_agent": 30}
FILLERS = {"product": 20, "brand": 20, "city": 20, "time": 10}
NAMES = {"name", "first", "last", "full"}


@cache
def turns() -> dict:
    return yaml.safe_load(TURNS.read_text(encoding="utf-8"))


def test_covers_the_languages():
    assert list(turns()["languages"]) == list(turns()["fillers"]) == FULL + HALF


@pytest.mark.parametrize("language", FULL + HALF)
def test_turns_of_a_language(language):
    divisor = 2 if language in HALF else 1
    fillers, lists = turns()["fillers"][language], turns()["languages"][language]
    assert set(fillers) == set(FILLERS)
    assert set(lists) == set(SIZES)
    for kind, size in FILLERS.items():
        assert len(fillers[kind]) >= size // divisor, kind
    for kind, size in SIZES.items():
        assert len(lists[kind]) >= size // divisor, kind
        for turn in lists[kind]:
            slots = re.findall(r"\{(\w+)\}", turn)
            assert turn.strip() == turn, turn
            assert not re.search(r"[{}]", re.sub(r"\{\w+\}", "", turn)), turn
            assert set(slots) <= NAMES | set(FILLERS), turn
            assert bool(NAMES & set(slots)) == kind.endswith("_named"), turn
    for values in (*fillers.values(), *lists.values()):
        assert all(isinstance(value, str) for value in values)
        assert len({value.casefold() for value in values}) == len(values)
