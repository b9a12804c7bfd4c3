"""Presidio as a worker in an environment of its own, because this project does not depend on it. Imports nothing of ours.

    <python with presidio-analyzer> benchmarks/measure/presidio_worker.py all|default passes regions < texts > spans

In: one JSON string a line. Out: for each text a line [[start, end, type, score], …], and last what the run was:
{"cpu": seconds of the fastest pass, "start": CPU seconds until ready, "recognisers": how many, "versions": {…}}.

`default` is what Presidio's English registry switches on, `all` adds every recogniser of a European country and of Canada
and looks for phone numbers of all given regions. No language model: the `no_op` engine.
"""

from __future__ import annotations

import time

BEGUN = time.process_time()

import json  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
from importlib import metadata  # noqa: E402
from pathlib import Path  # noqa: E402

import presidio_analyzer  # noqa: E402
import yaml  # noqa: E402
from presidio_analyzer import AnalyzerEngine  # noqa: E402
from presidio_analyzer.nlp_engine import NoOpNlpEngine  # noqa: E402
from presidio_analyzer.predefined_recognizers import PhoneRecognizer  # noqa: E402
from presidio_analyzer.recognizer_registry import RecognizerRegistryProvider  # noqa: E402

COUNTRIES = {"uk", "de", "es", "it", "pl", "fi", "se", "ca"}


def engine(which: str, regions: list[str]) -> AnalyzerEngine:
    """The analyser; recognisers of other languages are told that all is English, or Presidio would leave them out."""
    folder = Path(presidio_analyzer.__file__).parent
    settings = yaml.safe_load((folder / "conf/default_recognizers.yaml").read_text())
    if which == "all":
        settings["recognizers"] = [{**r, "enabled": True, "supported_languages": ["en"]} if r.get("country_code") in COUNTRIES else r for r in settings["recognizers"]]
    registry = RecognizerRegistryProvider(registry_configuration=settings).create_recognizer_registry()
    if which == "all":
        registry.recognizers = [r for r in registry.recognizers if not isinstance(r, PhoneRecognizer)] + [PhoneRecognizer(supported_regions=regions)]
    return AnalyzerEngine(registry=registry, nlp_engine=NoOpNlpEngine([{"lang_code": "en", "model_name": "no_op"}]), supported_languages=["en"])


def main(which: str, passes: str, regions: str) -> None:
    logging.disable(logging.WARNING)
    analyser = engine(which, regions.split(","))
    start = time.process_time() - BEGUN
    texts, seconds = [json.loads(line) for line in sys.stdin], []
    for _ in range(int(passes)):
        begun = time.process_time()
        found = [analyser.analyze(text, language="en") for text in texts]
        seconds.append(time.process_time() - begun)
    for spans in found:
        print(json.dumps([[span.start, span.end, span.entity_type, span.score] for span in spans]))
    versions = {name: metadata.version(name) for name in ("presidio-analyzer", "phonenumbers", "regex", "spacy")}
    print(json.dumps({"cpu": min(seconds), "start": start, "recognisers": len(analyser.registry.recognizers), "versions": versions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
