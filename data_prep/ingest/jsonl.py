"""`.jsonl` or `.jsonl.gz`, one object a line, as DESIGNed: conversations and, in a file of their own, feedback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.artifacts import StageError
from data_prep.conversation import read_jsonl


def conversations(data, run_dir: str) -> Iterator[tuple[str, object]]:
    return _lines(data.conversations, "data.conversations")


def feedback(data, run_dir: str) -> Iterator[tuple[str, object]]:
    return _lines(data.feedback, "data.feedback") if data.feedback else iter(())


def _lines(path: str | None, key: str) -> Iterator[tuple[str, object]]:
    if not path or not Path(path).is_file():
        raise StageError(f"{key}={path} is no file: give the path of a .jsonl or .jsonl.gz")
    for number, record in read_jsonl(path):
        yield f"{Path(path).name} line {number}", record
