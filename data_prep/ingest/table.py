"""CSV and Parquet with one message a row. `data.columns` maps our names to theirs, `data.roles` their words to our roles.

    conversation_id,role,content,at,…          `.csv`, `.tsv`, each also `.gz`: comma, semicolon, tab or bar, UTF-8, UTF-16 or Windows-1252
    the same columns as Parquet                `.parquet`

Rows of a conversation need not stand together and a conversation's rows are put in order by `at` where each has a time, otherwise
as they stand. For that the mapped columns are held in memory, once, beside an index of eight bytes a row: about the size of the file,
unpacked. Messages become Python objects one conversation at a time.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from data_prep.artifacts import StageError
from data_prep.conversation import BadRecord
from data_prep.ingest import jsonl
from data_prep.ingest.files import moment, stamp

NEEDED = ("conversation_id", "role", "content")
COLUMNS = (*NEEDED, "at", "author_id", "author_name", "customer_id", "customer_name", "customer_email", "customer_phone", "locale", "channel", "intent")
DELIMITERS = ",;\t|"
UNSPOKEN = {"bot": "a bot's turn", "note": "a private note"}
SPOKEN = {"customer": "user", "agent": "assistant", "system": "system", "tool": "tool"}
BATCH = 4096          # rows that are Python objects at once, at least


def conversations(data, run_dir: str) -> Iterator[tuple[str, object]]:
    columns = {ours: theirs for ours, theirs in data.columns.items() if theirs}
    if missing := [ours for ours in NEEDED if ours not in columns]:
        raise StageError(f"data.columns.{missing[0]} must be given: the name of that column in data.conversations")
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise StageError(f"data.columns.{unknown[0]} is no column of ours; ours are {', '.join(COLUMNS)}")
    if wrong := sorted(set(data.roles.values()) - set(SPOKEN) - set(UNSPOKEN)):
        raise StageError(f"data.roles has the role {wrong[0]!r}; the roles are {sorted({*SPOKEN, *UNSPOKEN})}")
    roles = {str(theirs).strip().casefold(): ours for theirs, ours in data.roles.items()}
    path = Path(data.conversations or "")
    table, broken = _read(path, columns)
    yield from broken
    for _, rows in itertools.groupby(_sorted(table), key=lambda row: str(row["conversation_id"])):
        rows = list(rows)
        yield f"{path.name} row {rows[0]['row']}", _conversation(rows, roles)


def feedback(data, run_dir: str) -> Iterator[tuple[str, object]]:
    return jsonl.feedback(data, run_dir)


def _read(path: Path, columns: dict[str, str]) -> tuple[pyarrow.Table, list[tuple[str, BadRecord]]]:
    """(the mapped columns under our names, rows that could not be read). Raises: StageError for no file, no such column."""
    if not path.is_file():
        raise StageError(f"data.conversations={path} is no file: give the path of a .csv, .tsv or .parquet")
    try:
        if path.suffix == ".parquet":
            _check(path, pyarrow.parquet.read_schema(path).names, columns)
            return _named(pyarrow.parquet.read_table(path, columns=[*columns.values()]), columns), []
        return _read_csv(path, columns)
    except (pyarrow.ArrowException, UnicodeError, OSError):
        # Arrow's own message may quote a customer.
        raise StageError(f"data.conversations={path} cannot be read as {'Parquet' if path.suffix == '.parquet' else 'CSV'}: "
                         "is it whole, and one encoding throughout?") from None


def _read_csv(path: Path, columns: dict[str, str]) -> tuple[pyarrow.Table, list[tuple[str, BadRecord]]]:
    broken: list[tuple[str, BadRecord]] = []

    def skip(row) -> str:
        broken.append((f"{path.name} row {row.number}", BadRecord(f"a row of {row.actual_columns} columns where there are {row.expected_columns}")))
        return "skip"

    encoding, delimiter, names = _dialect(path)
    _check(path, names, columns)
    with pyarrow.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
        table = pyarrow.csv.read_csv(
            stream, read_options=pyarrow.csv.ReadOptions(encoding=encoding, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pyarrow.csv.ConvertOptions(include_columns=[*columns.values()], strings_can_be_null=True, null_values=[""],
                                                       column_types={name: pyarrow.large_string() for name in columns.values()}))
    return _named(table, columns), broken


def _dialect(path: Path) -> tuple[str, str, list[str]]:
    """(encoding, delimiter, column names) by the file's first bytes; the delimiter is the one that splits the header most."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        head = file.read(1 << 20)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    else:
        try:
            # The piece may end within a letter: an incremental decoder does not mind.
            codecs.getincrementaldecoder("utf-8")().decode(head)
            encoding = "utf-8"
        except UnicodeDecodeError:
            encoding = "cp1252"
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head).removeprefix("\ufeff")
    headers = {delimiter: next(csv.reader(text.splitlines(), delimiter=delimiter), []) for delimiter in DELIMITERS}
    delimiter = max(headers, key=lambda d: len(headers[d]))
    return encoding, delimiter, headers[delimiter]


def _check(path: Path, names: list[str], columns: dict[str, str]) -> None:
    """A misspelt column would be a name that nobody looks for: every column that the configuration names must be there."""
    absent = [f"data.columns.{ours}={theirs}" for ours, theirs in columns.items() if theirs not in names]
    if absent:
        raise StageError(f"{path} has no column {', '.join(absent)}: give its name there, or null where the file has none")


def _named(table: pyarrow.Table, columns: dict[str, str]) -> pyarrow.Table:
    """Our names, 64-bit text (a column may pass 2 GB), and the number of each row."""
    fields = {ours: table[theirs] for ours, theirs in columns.items()}
    fields = {name: column.cast(pyarrow.large_string()) if pyarrow.types.is_string(column.type) else column for name, column in fields.items()}
    fields["conversation_id"] = fields["conversation_id"].cast(pyarrow.large_string())
    return pyarrow.table({**fields, "row": pyarrow.array(range(1, len(table) + 1), pyarrow.int64())})


def _sorted(table: pyarrow.Table) -> Iterator[dict]:
    order = pyarrow.compute.sort_indices(table, sort_keys=[("conversation_id", "ascending"), ("row", "ascending")])
    for start in range(0, len(order), BATCH):
        yield from table.take(order.slice(start, BATCH)).to_pylist()


def _conversation(rows: list[dict], roles: dict[str, str]) -> object:
    first = rows[0]
    if first["conversation_id"] is None:
        return BadRecord(f"{len(rows)} rows lack the conversation's id")
    if odd := next((row["row"] for row in rows if row.get("at") not in (None, "") and moment(row["at"]) is None), None):
        return BadRecord(f"row {odd} has a time that cannot be read: 2026-03-01T09:12:00Z, or seconds since 1970, is wanted; or data.columns.at=null, if no time is needed")
    if all(moment(row.get("at")) for row in rows):
        rows = sorted(rows, key=lambda row: moment(row["at"]))
    left_out, messages = Counter(), []
    for row in rows:
        role = roles.get(str(row["role"]).strip().casefold())
        if role is None:
            return BadRecord(f"row {row['row']} has a role that data.roles does not know")
        if role in UNSPOKEN:
            left_out[UNSPOKEN[role]] += 1
        elif not str(row["content"] or "").strip():
            left_out["a message without text"] += 1
        else:
            author = {"author_id": str(row["author_id"])} if role == "agent" and row.get("author_id") else {}
            messages.append({"role": SPOKEN[role], "content": str(row["content"]).strip(), "at": stamp(row.get("at")), **author})
    return {"id": first["conversation_id"], "messages": messages, "left_out": dict(left_out), "started_at": stamp(rows[0].get("at")),
            "locale": _first(rows, "locale"), "channel": _first(rows, "channel"), "outcome": {"intent": intent} if (intent := _first(rows, "intent")) else None,
            "customer": {key: value for key in ("id", "name", "email", "phone") if (value := _first(rows, f"customer_{key}"))},
            "agents": _agents(rows, roles)}


def _first(rows: list[dict], column: str) -> str | None:
    """The first value of a column that holds one for the whole conversation."""
    return next((str(row[column]) for row in rows if row.get(column)), None)


def _agents(rows: list[dict], roles: dict[str, str]) -> list[dict]:
    named = {(str(row.get("author_id") or ""), str(row.get("author_name") or "")) for row in rows if roles.get(str(row["role"]).strip().casefold()) != "customer"}
    return [{key: value for key, value in (("id", identity), ("name", name)) if value} for identity, name in sorted(named) if identity or name]
