"""Tables: the rows of a fine-tuning set with all their columns, Parquet or JSON lines, some at a time."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import InvalidTraining

ROWS_AT_ONCE = 2048
_JSON_ENDINGS = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True, slots=True)
class Tables:
    """Files of one schema.

    Attributes:
        files: in name order.
        schema: the columns of all of them; a key that some JSON lines lack is null there.
        num_rows: of all of them together.
    """

    files: tuple[Path, ...]
    schema: pa.Schema
    num_rows: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in order, at most `ROWS_AT_ONCE` at a time; raises InvalidTraining when a file was damaged since."""
        for file in self.files:
            yield from _batches(file, self.schema)


def find_tables(source: Path) -> Tables:
    """The tables of a file, or of a folder and those in it.

    JSON lines are read to their end, since only then it is known what columns they have and that none is damaged.

    Raises:
        InvalidTraining: when there is no such path or no row in it, when a file cannot be read, or when the columns of
            one do not go together with those of another.
    """
    heads = {file: _head(file) for file in _files(source)}
    num_rows = sum(rows for _, rows in heads.values())
    if not num_rows:
        raise InvalidTraining(f"{source} holds no rows")
    try:
        schema = reduce(_united, [own for own, _ in heads.values()])
    except pa.ArrowException as error:
        raise InvalidTraining(f"the files of {source} have columns that do not go together: {error}") from error
    for file, (own, _) in heads.items():
        if file.suffix == ".parquet" and not own.equals(schema):
            raise InvalidTraining(f"{file} has other columns than the other files of {source}: {', '.join(own.names)}")
    return Tables(tuple(heads), schema, num_rows)


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Writes a Parquet file that is there whole or not at all.

    Raises:
        InvalidTraining: when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(partial, schema) as writer:
            yield writer
        partial.replace(path)
    except (OSError, pa.ArrowException) as error:
        raise InvalidTraining(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        if not _is_table(source):
            raise InvalidTraining(f"{source} is no table: {_KINDS}")
        return [source]
    if not source.is_dir():
        raise InvalidTraining(f"there is no file or folder {source}")
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and _is_table(path)]
    if not files:
        raise InvalidTraining(f"{source} holds no table: {_KINDS}")
    return files


def _is_table(path: Path) -> bool:
    ending = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return not path.name.startswith(".") and (path.suffix == ".parquet" or ending in _JSON_ENDINGS)


_KINDS = f"tables are files ending in .parquet, {', '.join(_JSON_ENDINGS)} or .jsonl.gz"


def _head(file: Path) -> tuple[pa.Schema, int]:
    """Columns and number of rows of a file."""
    with _reading(file):
        if file.suffix == ".parquet":
            with pq.ParquetFile(file) as table:
                return table.schema_arrow, table.metadata.num_rows
        schema, num_rows = pa.schema([]), 0
        for rows in _json_rows(file):
            schema = _united(schema, pa.schema(pa.array(rows).type))
            num_rows += len(rows)
        return schema, num_rows


def _united(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    return pa.unify_schemas([one, other], promote_options="permissive")


def _batches(file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with _reading(file):
        if file.suffix == ".parquet":
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
                    batch.validate(full=True)
                    yield batch
            return
        for rows in _json_rows(file):
            yield pa.RecordBatch.from_struct_array(pa.array(rows, pa.struct(schema)))


def _json_rows(file: Path) -> Iterator[list[dict[str, Any]]]:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as text:
        rows = (_json_row(number, line) for number, line in enumerate(text, start=1) if line.strip())
        while some := list(islice(rows, ROWS_AT_ONCE)):
            yield some


def _json_row(number: int, line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object, and JSON lines have one a line")
    return row


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, pa.ArrowException) as error:
        raise InvalidTraining(f"{file} cannot be read: {error}") from error
