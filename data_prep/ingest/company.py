"""The archive that a company pack wrote about itself (stage generate)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.artifacts import StageError
from data_prep.conversation import read_jsonl


def conversations(data, run_dir: str) -> Iterator[tuple[str, object]]:
    return _lines(Path(run_dir) / "generate" / "conversations.jsonl")


def feedback(data, run_dir: str) -> Iterator[tuple[str, object]]:
    return _lines(Path(run_dir) / "generate" / "feedback.jsonl")


def _lines(path: Path) -> Iterator[tuple[str, object]]:
    if not path.is_file():
        raise StageError(f"anonymise needs the output of generate, and {path} is not there: run 'stages=[generate]' first")
    for number, record in read_jsonl(path):
        yield f"{path.name} line {number}", record
