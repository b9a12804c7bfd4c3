"""Public data with human or template labels, read where somebody has it: nothing of it is copied into the project.

Every reader gives cases of `benchmarks/pii/sets.py`; in a span, the fourth entry is the data set's own label.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

SYNTH, DOGO, UNER = "presidio_research/data/synth_dataset_v2.json", "multidogo/data/paper_splits/splits_annotated_at_turn_level", "uner"
ADDRESSABLE = ("CREDIT_CARD", "PHONE_NUMBER", "EMAIL_ADDRESS", "DOMAIN_NAME", "IBAN_CODE", "US_SSN", "IP_ADDRESS", "US_DRIVER_LICENSE", "DATE_TIME")
VAGUE = re.compile(r"\d{4}|\w+day", re.IGNORECASE)          # a bare year or weekday is nobody's
PERSONAL = ("name", "approver_name", "ssn", "card_number", "account_number", "target_account_number", "address", "phone_number", "email_address", "password", "policyid", "claimid")
DOMAINS = ("finance", "insurance", "software")


def absent(data: Path | None, part: str) -> str | None:
    """Why a data set cannot be measured here; None where it can."""
    if data is None:
        return "no folder of public data was given (data=<folder> or SUPPORTLOOP_DATA)"
    return None if (data / part).exists() else f"{part} is not in the given folder"


def _case(name: str, group: str, locale: str, messages: list[str], spans: list[list]) -> dict:
    return {"set": name, "group": group, "language": locale[:2], "locale": locale, "customer": {}, "agents": [], "messages": [{"role": "user", "content": text} for text in messages], "spans": spans, "keep": []}


def synth(data: Path) -> Iterator[dict]:
    """presidio-research's synth_dataset_v2: 1,500 templated English texts. Bare years and weekdays are labelled apart."""
    for sample in json.loads((data / SYNTH).read_text(encoding="utf-8")):
        spans = [[0, s["start_position"], s["end_position"], label_of(s["entity_type"], s["entity_value"])] for s in sample["spans"]]
        yield _case("synth", "synth", "en-US", [sample["full_text"]], spans)


def label_of(kind: str, value: str) -> str:
    return "bare year or weekday" if kind == "DATE_TIME" and VAGUE.fullmatch(value) else kind


def multidogo(data: Path) -> Iterator[dict]:
    """MultiDoGO dev and test: customers' turns, lower-cased and without punctuation by the authors, slots labelled by people. One case a conversation.

    A slot is a run of tokens with one label. Rows whose labels do not fit their tokens are left out, as the data's notice advises.
    """
    for domain in DOMAINS:
        for split in ("dev", "test"):
            with open(data / DOGO / domain / f"{split}.tsv", encoding="utf-8", newline="") as lines:
                rows = [row for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row["utterance"] and row["slot-labels"]]
            for _, turns in groupby(rows, key=lambda row: row["conversationId"]):
                fit = [row for row in turns if len(row["utterance"].split(" ")) == len(row["slot-labels"].split(" "))]
                spans = [[i, *span] for i, row in enumerate(fit) for span in slots(row["utterance"], row["slot-labels"].split(" "))]
                if fit:
                    yield _case("multidogo", domain, "en-US", [row["utterance"] for row in fit], spans)


def slots(text: str, labels: list[str]) -> Iterator[tuple[int, int, str]]:
    """(start, end, label) of every run of tokens with one label; `O` too, for what must stay."""
    start = 0
    for label, tokens in groupby(zip(text.split(" "), labels, strict=True), key=lambda pair: pair[1]):
        length = len(" ".join(token for token, _ in tokens))
        if text[start:start + length].strip():
            yield start, start + length, label
        start += length + 1


def uner(data: Path) -> Iterator[dict]:
    """UNER dev and test: real sentences, most of them news, with people's names (PER) marked by people."""
    for path in sorted((data / UNER).glob("*/*.iob2")):
        language = path.name[:2]
        for block in path.read_text(encoding="utf-8").split("\n\n"):
            lines = block.splitlines()
            text = next((line[9:] for line in lines if line.startswith("# text = ")), None)
            if text:
                yield _case("uner", language, language, [text], people(text, [line.split("\t") for line in lines if line and not line.startswith("#")]))


def people(text: str, tokens: list[list[str]]) -> list[list]:
    """Where the PER of these tokens stand in their sentence."""
    spans, at = [], 0
    for token in tokens:
        start = text.find(token[1], at)
        if start < 0:
            continue
        at = start + len(token[1])
        if token[2] == "B-PER" or (token[2] == "I-PER" and not spans):
            spans.append([0, start, at, "PER"])
        elif token[2] == "I-PER":
            spans[-1][2] = at
    return spans


def shape(text: str) -> str:
    """What a value looks like, without the value: "4 digits", "1 word", "words and digits"."""
    words = text.split()
    if text.replace(" ", "").isdigit():
        return f"{len(text.replace(' ', ''))} digits" + (f" in {len(words)} groups" if len(words) > 1 else "")
    if any(c.isdigit() for c in text):
        return f"{len(words)} words with digits" if len(words) > 1 else "letters and digits in one word"
    return f"{len(words)} word{'s' * (len(words) > 1)}"
