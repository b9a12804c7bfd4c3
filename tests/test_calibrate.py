"""What the guard's words weigh: fitted on the lists as they are, and by the textbook."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sparse

from data_prep.artifacts import hash_value
from eval import calibrate
from eval.calibrate import class_of, examples, likelihood, one_hot, soften
from eval.handoff import messages_of
from serve.cues import CLASSES, FOLDER, SIZE, features, language_of, languages, needs_person, p_person, probabilities, weights


def test_the_weights_were_fitted_on_the_lists_as_they_are():
    with np.load(FOLDER / "weights.npz") as held:
        assert held["weights"].shape == (SIZE, len(CLASSES))
        assert str(held["learned"]) == hash_value(examples()), "the lists have changed since: run `python -m eval.calibrate`"


def test_the_measured_half_is_not_learned_from():
    learned = {text for _, _, text, _ in examples()}
    assert not {text for _, kind, text in messages_of("test") if kind != "bare"} & learned


def test_a_fit_finds_what_tells_the_classes_apart(monkeypatch):
    monkeypatch.setattr(calibrate, "SIZE", 4)
    rng = np.random.default_rng(0)
    labels = one_hot([CLASSES[i % len(CLASSES)] for i in range(160)])
    x = sparse.csr_matrix(np.c_[labels[:, :3], np.ones(160)] + rng.normal(0, 0.01, (160, 4)))
    made = calibrate.fit(x, labels, np.ones(160), 0.01)
    assert ((x @ made).argmax(1) == labels.argmax(1))[labels[:, :3].any(1)].all()


def test_the_gradient_is_that_of_the_likelihood():
    rng = np.random.default_rng(1)
    logits, labels, weight = rng.normal(size=(5, len(CLASSES))), one_hot([CLASSES[i] for i in (0, 2, 3, 0, 7)]), rng.random(5)
    value, gradient = likelihood(logits, labels, weight)
    moved = logits.copy()
    moved[2, 3] += 1e-6
    assert (likelihood(moved, labels, weight)[0] - value) / 1e-6 == pytest.approx(gradient[2, 3], abs=1e-4)


def test_softening_makes_the_sure_less_sure_where_they_are_wrong():
    rng = np.random.default_rng(2)
    labels = one_hot([CLASSES[i % 2 * 2] for i in range(400)])
    logits = labels * 8.0
    wrong = rng.random(400) < 0.25
    logits[np.ix_(wrong, [0, 2])] = logits[np.ix_(wrong, [2, 0])]
    _, temperature = soften(logits, labels)
    assert temperature > 2


def test_kinds_are_classes():
    assert [class_of(kind) for kind in ("requests", "bare", "request", "fraud", "ai", "mentions", "ordinary")] == ["human", "human", "human", "fraud", "ai", "none", "none"]


@pytest.mark.parametrize(("text", "trained", "code"), [
    ("людина", ["en", "de"], "uk"), ("人工", ["en"], "zh"), ("hm", ["en", "de"], None), ("Wo ist denn mein Paket geblieben?", ["en", "de"], "de"), ("¿Dónde está mi paquete, por favor?", ["en"], "es"),
    ("12345", ["nl"], "nl"), ("कहाँ है मेरा सामान", ["en"], "hi"), ("где моя посылка, скажите пожалуйста", ["ru"], "ru")])
def test_the_language_is_one_of_those_trained_unless_another_is_clearly_likelier(text, trained, code):
    found = language_of(text, trained)
    assert found == code if code not in ("uk", None) else found in (trained if code is None else ("uk", "ru", "bg", "sr"))


def test_probabilities_are_over_all_classes_and_places_within_the_vector():
    for code, text in (("en", "I want a person"), ("ja", "担当者お願いします"), ("ar", "أريد موظف")):
        places, values = features(text, languages()[code])
        assert max(places) < SIZE
        assert len(places) == len(values)
        assert sum(probabilities(text, languages()[code]).values()) == pytest.approx(1, abs=1e-5)
        assert p_person(needs_person(text, languages()[code])) > 0.5
    assert weights()[2] > 0
