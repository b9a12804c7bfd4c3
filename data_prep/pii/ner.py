"""A model of your own that finds names: one protocol, four libraries, none of them needed.

    anonymise.ner=transformers:/models/ner      a local folder with a token classification model
    anonymise.ner=spacy:/models/xx_ent_wiki     a spaCy pipeline, by folder or package
    anonymise.ner=gliner:/models/gliner         GLiNER, asked for persons, addresses and organisations of persons
    anonymise.ner=presidio:en                   Presidio's analyzer with its default recognisers

A recogniser is a function (texts, language) → for each text a list of (start, end, kind), kind one of
`detect.PRIORITY`. Its spans join those of the other detectors; it can only add to what is masked.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

from data_prep.artifacts import StageError

Recogniser = Callable[[list[str], str], list[list[tuple[int, int, str]]]]
KINDS = {"PER": "name", "PERSON": "name", "PS": "name", "LOC": "address", "ADDRESS": "address", "STREET_ADDRESS": "address", "EMAIL_ADDRESS": "email", "EMAIL": "email", "PHONE_NUMBER": "phone",
         "PHONE": "phone", "CREDIT_CARD": "card", "IBAN_CODE": "iban", "US_SSN": "national_id", "IP_ADDRESS": "ip", "URL": "url", "US_PASSPORT": "document", "US_DRIVER_LICENSE": "document"}


@functools.cache
def load(model: str) -> Recogniser:
    """Raises: StageError where the library or the model is missing."""
    library, _, path = model.partition(":")
    makers = {"transformers": _transformers, "spacy": _spacy, "gliner": _gliner, "presidio": _presidio}
    if library not in makers or not path:
        raise StageError(f"anonymise.ner={model} is unknown; write one of {', '.join(f'{name}:<model>' for name in makers)}")
    try:
        return makers[library](path)
    except ImportError as error:
        raise StageError(f"anonymise.ner={model} needs a library that is not installed ({error.name}): pip install {error.name}") from error
    except OSError as error:
        raise StageError(f"anonymise.ner={model}: no such model ({type(error).__name__}); give a local folder") from error


def _transformers(path: str) -> Recogniser:
    # by name, for preparation as a whole needs no torch
    pipeline = importlib.import_module("transformers").pipeline("token-classification", model=path, aggregation_strategy="simple")

    def recognise(texts: list[str], language: str) -> list[list[tuple[int, int, str]]]:
        return [[(found["start"], found["end"], KINDS[label]) for found in each if (label := found["entity_group"].upper()) in KINDS] for each in pipeline(texts)]
    return recognise


def _spacy(path: str) -> Recogniser:
    nlp = importlib.import_module("spacy").load(path)

    def recognise(texts: list[str], language: str) -> list[list[tuple[int, int, str]]]:
        return [[(entity.start_char, entity.end_char, KINDS[entity.label_]) for entity in document.ents if entity.label_ in KINDS] for document in nlp.pipe(texts)]
    return recognise


def _gliner(path: str) -> Recogniser:
    model = importlib.import_module("gliner").GLiNER.from_pretrained(path, local_files_only=True)
    labels = {"person": "name", "street address": "address"}

    def recognise(texts: list[str], language: str) -> list[list[tuple[int, int, str]]]:
        return [[(found["start"], found["end"], labels[found["label"]]) for found in model.predict_entities(text, list(labels), threshold=0.4)] for text in texts]
    return recognise


def _presidio(path: str) -> Recogniser:
    analyzer = importlib.import_module("presidio_analyzer").AnalyzerEngine()

    def recognise(texts: list[str], language: str) -> list[list[tuple[int, int, str]]]:
        return [[(found.start, found.end, KINDS[found.entity_type]) for found in analyzer.analyze(text, language=path, score_threshold=0.4) if found.entity_type in KINDS] for text in texts]
    return recognise
