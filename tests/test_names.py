"""Names of people nobody told us about: what makes a word one, and what keeps an ordinary word from being one."""

from __future__ import annotations

import random
import re

import pytest

from data_prep.conversation import Conversation
from data_prep.pii import dates, fit
from data_prep.pii.announce import announced, data
from data_prep.pii.lexicon import dictionary, is_word, turns
from data_prep.pii.mail import said_mails
from data_prep.pii.mask import Masker, seconds_of
from data_prep.pii.sentences import sentences
from tests.identifiers import found, shipped


def named(text: str, locale: str) -> list[str]:
    return [text[span.start:span.end] for span in found(text, locale) if span.kind == "name"]


@pytest.mark.parametrize(("text", "locale", "names"), [
    ("Dear Mrs Lincoln, thank you", "en-GB", ["Lincoln"]), ("Bonjour Madame Comment,", "fr-FR", ["Comment"]), ("atentamente Carla Armas", "es-ES", ["Carla Armas"]), ("det var Odd Ellingsen i går", "nb-NO", ["Odd Ellingsen"])])
def test_a_title_or_a_name_beside_it_makes_a_name_of_a_word(text, locale, names):
    assert named(text, locale) == names


@pytest.mark.parametrize(("text", "locale"), [
    ("Im Protokoll steht ein Fehler", "de-DE"), ("Ist die Winterjacke auf Lager", "de-DE"), ("Paid with Klarna, then with Sony", "en-GB"), ("em trinta dias úteis", "pt-PT"), ("terve, pikainen kysymys", "fi-FI"), ("my IBAN please", "en-GB")])
def test_words_and_brands_are_nobody(text, locale):
    assert named(text, locale) == []


@pytest.mark.parametrize(("word", "language", "expected"), [
    ("delivery", "en", True), ("lieferung", "de", True), ("jacken", "de", True), ("klinger", "de", False), ("tomasz", "pl", False), ("przesyłka", "pl", True), ("csaba", "hu", False), ("talossa", "fi", True),
    ("pedido", "eu", True), ("xyzzy", "eu", False)])
def test_a_dictionary_tells_words_from_names(word, language, expected):
    assert is_word(word, language) is expected


def test_a_language_without_a_dictionary_is_said_to_have_none():
    assert not dictionary("eu")
    assert not dictionary("xx")


@pytest.mark.parametrize("answers", [["B", "E", "R", "G"], ["b, e, r, g"], ["b e", "r", "g"], ["B for Bravo, E for Echo, R for Romeo"]])
def test_a_name_told_letter_by_letter_goes(answers):
    talk = Conversation("c", [{"role": "assistant", "content": "How is that spelled?"}, *({"role": "user", "content": answer} for answer in answers)], "en-GB")
    masked = [message["content"] for message in Masker(b"k", shipped()).apply(talk).record["messages"][1:]]
    assert "".join(masked).casefold() != "".join(answers).casefold()
    assert "berg" not in re.sub(r"\W", "", "".join(masked)).casefold()


def test_yes_and_no_in_one_letter_stay():
    talk = Conversation("c", [{"role": role, "content": text} for role, text in (("assistant", "sure?"), ("user", "y"), ("assistant", "gift?"), ("user", "n"), ("assistant", "and?"), ("user", "y"))], "en-GB")
    assert [message["content"] for message in Masker(b"k", shipped()).apply(talk).record["messages"][1::2]] == ["y", "n", "y"]


@pytest.mark.parametrize("text", [
    "anna bindestrich berg at web punkt de", "anna understreck berg snabel-a telia punkt se", "rockgirl punt carlos @je mail punt berg punt eu", "anna underscore berg AT big dash mail DOT com", "s a r a m @ sky.com", "t u r b o at g m x . d e"])
def test_an_address_told_in_words_is_one_piece(text):
    assert list(said_mails(f"meine ist {text}")) == [(10, 10 + len(text))]


@pytest.mark.parametrize("text", ["we met at noon", "look at me. dot", "5 @ home", "at at at dot"])
def test_an_at_alone_is_no_address(text):
    assert list(said_mails(text)) == []


@pytest.mark.parametrize(("before", "kinds"), [("my gift card ", ["business"]), ("put the refund back on ", []), ("your ref: ", ["business"]), ("Referenznummer ", ["business"]), ("card", ["card"]), ("x" * 60 + " phone ", ["phone"]), ("phone " + "x" * 60 + " ", []), ("my e-mail or phone: ", ["phone", "mail"])])
def test_words_announce_what_follows(before, kinds):
    found_kinds = announced(before + "4111", len(before))
    assert [kind for kind in found_kinds if kind in kinds] == kinds
    assert len(found_kinds) >= len(kinds)


def test_natural_turns_teach_the_tagger():
    """They once did not: the call that draws them had been lost, and nothing failed."""
    said = [text for _, text, _, _, _ in sentences(random.Random(0), 300)]
    openings = {turn.split("{")[0].casefold() for row in turns()["languages"].values() for kind in row for turn in row[kind] if len(turn.split("{")[0]) > 12}
    assert sum(any(text.casefold().startswith(opening) for opening in openings) for text in said) > 60


def test_brands_are_tidy_and_no_given_names():
    words = [word for brands in data("brands.yaml").values() for word in brands.split()]
    assert len(words) == len(set(words)) > 500
    assert {word for word in words if word != word.casefold()} == set()
    assert {"otto", "alexa", "hugo", "elisa", "tim"}.isdisjoint(words)


@pytest.mark.parametrize("text", ["version 9.7.33", "we run 9.7.33-beta0"])
def test_a_version_is_no_date(text):
    assert list(dates.dates(text, "en-GB")) == []


def test_times_to_the_second_move_by_the_key():
    assert seconds_of(b"one", "c") != seconds_of(b"two", "c")
    assert all(60 < seconds_of(b"one", str(i)) <= 3600 for i in range(50))


def test_a_macro_that_names_nobody_is_no_gap(tmp_path):
    """"Good" and "Schön" are surnames too; a sentence that every agent says with them is not one about Mr Good."""
    macros = {"en-GB": "Good news: your order is on the way and arrives in 6 days.", "de-DE": "Schön, dass ich Ihnen heute helfen konnte."}
    learner = fit.Learner(shipped())
    for number in range(40):
        for locale, macro in macros.items():
            learner.see(Conversation(f"{locale}{number}", [{"role": "assistant", "content": macro}], locale, customer={"id": f"u{number}"}), 5)
    learner.write(tmp_path, 5)
    masker = Masker(b"k", fit.load(tmp_path))
    for locale, macro in macros.items():
        assert masker.apply(Conversation("c", [{"role": "assistant", "content": macro}], locale)).record["messages"][0]["content"] == macro


@pytest.mark.parametrize("text", ["Jag gillar inte halsduken och vill skicka tillbaka varan. Det är order 36672"])
def test_words_are_no_account(text):
    assert found(text, "sv-SE") == []
