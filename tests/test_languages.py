"""Language data of the anonymiser: every language has every list, strings only, nothing twice, nothing that YAML read as a truth value."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
import yaml

import data_prep.pii

FOLDER = Path(data_prep.pii.__file__).parent
LANGUAGES = ["bg", "ca", "cs", "da", "de", "el", "en", "es", "et", "eu", "fi", "fr", "ga", "gl", "hr", "hu", "is", "it", "lt", "lv", "mk", "mt", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sq", "sr", "sv", "tr", "uk", "ar", "he"]
LISTS = {"introduces", "follows", "speaks_to", "greets", "thanks", "signs_off", "titles", "relatives", "asks", "particles", "streets_after", "streets_before", "streets_joined", "moves", "born"}
FULL = LISTS - {"particles", "streets_after", "streets_before", "streets_joined"}
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(name: str) -> dict:
    return yaml.load((FOLDER / name).read_text(encoding="utf-8"), LOADER)


@pytest.fixture(scope="module")
def names() -> dict:
    return read("names.yaml")["languages"]


@pytest.fixture(scope="module")
def common() -> dict:
    return {language: {key: words.split() for key, words in row.items()} for language, row in read("common_words.yaml")["languages"].items()}


def strings(value: object) -> list:
    """All leaves and keys."""
    if isinstance(value, dict):
        return [*value, *(leaf for each in value.values() for leaf in strings(each))]
    return [leaf for each in value for leaf in strings(each)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", ["names.yaml", "common_words.yaml", "digits.yaml", "announce.yaml"])
def test_yaml_holds_strings_only(name):
    assert [leaf for leaf in strings(read(name)) if not isinstance(leaf, str)] == []


def test_every_language_has_every_list(names, common):
    assert sorted(names) == sorted(common) == sorted(LANGUAGES)
    for language, lists in names.items():
        assert set(lists) == LISTS, language
        assert {key for key in FULL if len(lists[key]) < 5} == set(), language
        assert any(lists[key] for key in ("streets_after", "streets_before", "streets_joined")), language
    for language, lists in common.items():
        assert set(lists) == {"words", "also_names"}, language
        assert len(lists["words"]) >= 250, language
        assert len(lists["also_names"]) >= 30, language


def test_phrases_are_tidy(names, common):
    for language, lists in [*names.items(), *common.items()]:
        for key, phrases in lists.items():
            untidy = [p for p in phrases if p != " ".join(p.lower().split()) or p != unicodedata.normalize("NFC", p) or "’" in p or not p]
            assert untidy == [], (language, key)
            assert sorted(p for p in set(phrases) if phrases.count(p) > 1) == [], (language, key)


def test_no_word_mixes_scripts(names, common):
    mixed = re.compile(r"[a-zà-ž][\u0370-\u05ff\u0600-\u06ff]|[\u0370-\u05ff\u0600-\u06ff][a-zà-ž]")
    assert [(language, p) for table in (names, common) for language, lists in table.items() for key in lists for p in lists[key] if mixed.search(p)] == []
    assert [p for p in strings([read("digits.yaml"), read("announce.yaml")]) if mixed.search(p)] == []


def test_digits_have_ten_forms():
    tables = read("digits.yaml")["languages"]
    assert sorted(tables) == sorted(LANGUAGES)
    for language, table in tables.items():
        assert len(table["digits"]) == 10, language
        assert len(table.get("tens", ["-"] * 8)) == 8, language
        forms = [form for digit in table["digits"] for form in digit.split()]
        assert len(forms) == len(set(forms)) >= 10, language
        assert all(form == form.lower() for form in forms), language


def test_announcing_words_are_tidy():
    for key, words in read("announce.yaml").items():
        assert [w for w in words if w != " ".join(w.split()) or w.lower() != w] == [], key
        assert sorted(w for w in set(words) if words.count(w) > 1) == [], key
