"""Our own format, as DESIGNed: `.jsonl`, `.jsonl.gz` or `.parquet`, one conversation an object, and feedback in a file of its own.

In Parquet, `messages` (and `customer`, `agents`, `outcome`, `metadata`) are columns of structs and lists, or of JSON text.
It is read in batches, so only one batch is in memory.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path

from data_prep.artifacts import StageError
from data_prep.conversation import BadRecord
from data_prep.ingest.files import objects, stamp

NESTED = ("messages", "customer", "agents", "outcome", "metadata")


def conversations(data, run_dir: str) -> Iterator[tuple[str, object]]:
    if str(data.conversations).endswith(".parquet"):
        return _rows(Path(data.conversations))
    return objects(data.conversations, "data.conversations")


def feedback(data, run_dir: str) -> Iterator[tuple[str, object]]:
    return objects(data.feedback, "data.feedback") if data.feedback else iter(())


def _rows(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid):
        raise StageError(f"data.conversations={path} is no Parquet file: give the path of one, or of a .jsonl") from None
    number = 0
    for batch in file.iter_batches(batch_size=256):
        for row in batch.to_pylist():
            number += 1
            yield f"{path.name} row {number}", _record(row)


def _record(row: dict) -> object:
    try:
        nested = {key: json.loads(row[key]) for key in NESTED if isinstance(row.get(key), str)}
    except ValueError:
        return BadRecord("a column of nested values is not JSON")
    return _without_nulls({**row, **nested})


def _without_nulls(value: object) -> object:
    """A column of structs has every key in every row; null means that the record had none."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return stamp(value) if isinstance(value, datetime.datetime) else value
