"""Tables: the rows of a fine-tuning set with all their columns, Parquet or JSON lines, some at a time.

A row that cannot be used is kept, so that what is scored has the rows of what came in; what was wrong with it is known
before anything else begins.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from replay_service.corpus.shards.documents import HALF_A_PAIR, NOT_A_STRING, NOT_UTF8, Columns, Row, SetAside, decoded
from replay_service.corpus.shards.filesystems import failures_named, locate
from replay_service.corpus.shards.listing import Shard, find_shards
from replay_service.corpus.shards.rows import read_rows, values_of
from replay_service.corpus.shards.sources import check_fetched
from replay_service.errors import ReplayError
from replay_trainer.batches.json_columns import JsonColumns
from replay_trainer.errors import InvalidTraining

ROWS_AT_ONCE: Final = 2048
BYTES_AT_ONCE: Final = 32 << 20
"""Or fewer rows, of so many bytes of their file: few rows may hold very long texts."""
_KINDS: Final = "tables are files ending in .parquet, .jsonl, .ndjson or .json, of the last three also compressed ones"


class Unusable(NamedTuple):
    """A row without a text that could be read: where it stands, and why."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tables:
    """Files of one schema.

    Attributes:
        files: in name order.
        schema: the columns of all of them; what a file or a line lacks is null there.
        num_rows: of all of them together.
        unusable: rows whose line, or one of whose texts, cannot be read; null in the batches.
        as_json: the columns whose values no type holds, which are JSON as text in the batches.
    """

    files: tuple[Shard, ...]
    schema: pa.Schema
    num_rows: int
    unusable: tuple[Unusable, ...] = ()
    as_json: tuple[str, ...] = ()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in order, at most `ROWS_AT_ONCE` at a time; raises InvalidTraining when a file was damaged since."""
        for file in self.files:
            with _reading(file):
                read = _parquet_batches if file.kind == "parquet" else self._json_batches
                for batch in read(file):
                    yield _as_schema(batch, self.schema)

    def _json_batches(self, file: Shard) -> Iterator[pa.RecordBatch]:
        for rows in _json_rows(file):
            yield JsonColumns.batch(
                [row.fields if isinstance(row, Row) else {} for row in rows],
                self.schema,
                self.as_json,
                lambda index, rows=rows: _place(file, rows[index]),  # type: ignore[misc]
            )


def find_tables(source: Path | str, texts: Sequence[str] = ()) -> Tables:
    """The tables of a file, or of a folder and those in it.

    JSON lines, and the columns of `texts`, are read to their end, since only then it is known what columns they have
    and which rows can be used.

    Raises:
        InvalidTraining: when there is no such path or no row in it, when a file cannot be read, or when the columns of
            one do not go together with those of another.
    """
    files = _files(source)
    heads = {file.name: _parquet_schema(file) for file in files if file.kind == "parquet"}
    lines, num_rows, unusable = JsonColumns(texts), 0, list[Unusable]()
    for file in files:
        with _reading(file):
            looked = _look_at_parquet(file, texts) if file.kind == "parquet" else _look_at_lines(file, texts, lines)
            for num, wrong in looked:
                num_rows += num
                unusable += wrong
    if num_rows == len([each for each in unusable if each.reason not in _OF_TEXTS]):
        first = f": {unusable[0].place}: {unusable[0].reason}" if unusable else ""
        raise InvalidTraining(f"{source} holds no rows{first}")
    of_lines = lines.schema() if len(heads) < len(files) else None
    schema = _united(heads if of_lines is None else {**heads, "the JSON lines": of_lines})
    tables = Tables(tuple(files), schema, num_rows, tuple(unusable), tuple(lines.as_json()))
    _check_types(tables, heads, of_lines)
    return tables


_OF_TEXTS: Final = (NOT_A_STRING, HALF_A_PAIR, NOT_UTF8)


def check_writable(path: Path, schema: pa.Schema) -> None:
    """Find whether a Parquet file of a schema can be written, and leave nothing behind.

    Raises:
        InvalidTraining: when it cannot.
    """
    folder = next(each for each in path.absolute().parents if each.exists())
    with _writing(path), tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.") as file:
        pq.ParquetWriter(file, schema).close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        yield
    except (OSError, pa.ArrowException) as error:
        raise InvalidTraining(f"{path} cannot be written: {error}") from error


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Writes a Parquet file that is there whole or not at all.

    Raises:
        InvalidTraining: when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(partial, schema) as writer:
                yield writer
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def texts_of(column: pa.Array) -> list[str | None]:
    """The texts in a column; None where there is none, and where it is not UTF-8."""
    values = values_of(column)
    return [decoded(each) if isinstance(each, bytes) else each for each in values]


def _files(source: Path | str) -> list[Shard]:
    try:
        files = [shard for shard in find_shards(source) if shard.kind in ("parquet", "jsonl")]
        for file in files:
            check_fetched(file)
    except ReplayError as error:
        raise InvalidTraining(error.detail) from error
    if not files:
        raise InvalidTraining(f"{source} holds no table: {_KINDS}")
    return files


def _look_at_lines(file: Shard, texts: Sequence[str], columns: JsonColumns) -> Iterator[tuple[int, list[Unusable]]]:
    """How many rows there are, and which of them cannot be used, some at a time; adds them to `columns`."""
    for rows in _json_rows(file):
        columns.add([row.fields for row in rows if isinstance(row, Row)])
        found = ((row, _unusable_line(row, texts)) for row in rows)
        yield len(rows), [Unusable(_place(file, row), reason) for row, reason in found if reason]


def _unusable_line(row: Row | SetAside, texts: Sequence[str]) -> str | None:
    if isinstance(row, SetAside):
        return row.reason
    values = [value for name in texts if (value := row.fields.get(name)) is not None]
    if not all(isinstance(value, str) for value in values):
        return NOT_A_STRING
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return HALF_A_PAIR
    return None


def _look_at_parquet(file: Shard, texts: Sequence[str]) -> Iterator[tuple[int, list[Unusable]]]:
    with locate(file.url).open_file() as content, pq.ParquetFile(content) as table:
        yield table.metadata.num_rows, []
        number = 0
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=_present(table, texts)):
            columns = [values_of(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                if any(isinstance(each, bytes) and decoded(each) is None for each in values):
                    yield 0, [Unusable(f"{file.name} row {number}", NOT_UTF8)]
                number += 1


def _present(table: pq.ParquetFile, texts: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(texts) if table.schema_arrow.names.count(name) == 1]


def _parquet_schema(file: Shard) -> pa.Schema:
    with _reading(file), locate(file.url).open_file() as content, pq.ParquetFile(content) as table:
        return table.schema_arrow


def _parquet_batches(file: Shard, names: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    with locate(file.url).open_file() as content, pq.ParquetFile(content) as table:
        groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
        num_bytes = max(1, sum(each.total_byte_size for each in groups))
        rows_at_once = min(ROWS_AT_ONCE, max(1, BYTES_AT_ONCE * table.metadata.num_rows // num_bytes))
        yield from table.iter_batches(batch_size=rows_at_once, columns=names)


def _json_rows(file: Shard) -> Iterator[list[Row | SetAside]]:
    some: list[Row | SetAside] = []
    begin = position = 0
    for row in read_rows("jsonl", locate(file.url), Columns(), file.name):
        some.append(row)
        position = row.position if isinstance(row, Row) else position
        if len(some) == ROWS_AT_ONCE or position - begin >= BYTES_AT_ONCE:
            yield some
            some, begin = [], position
    if some:
        yield some


def _place(file: Shard, row: Row | SetAside) -> str:
    number = row.number if isinstance(row, Row) else row.row
    return f"{file.name} line {number + 1}"


def _united(schemas: dict[str, pa.Schema]) -> pa.Schema:
    """One schema for files, by what each is called."""
    if len(schemas) == 1:
        return next(iter(schemas.values()))
    for of, schema in schemas.items():
        if twice := [name for name in schema.names if schema.names.count(name) > 1]:
            raise InvalidTraining(f"{of} has more than one column {twice[0]!r}; rename one of them")
    types: dict[str, tuple[str, pa.Field]] = {}
    for of, schema in schemas.items():
        for each in schema:
            first, before = types.get(each.name, (of, each))
            types[each.name] = first, _common(before, each, first, of)
    return pa.schema([each for _, each in types.values()], metadata=next(iter(schemas.values())).metadata)


def _common(one: pa.Field, other: pa.Field, of_one: str, of_other: str) -> pa.Field:
    try:
        schemas = [pa.schema([one]), pa.schema([other])]
        return reduce(lambda a, b: pa.unify_schemas([a, b], promote_options="permissive"), schemas).field(0)
    except pa.ArrowException as error:
        raise InvalidTraining(
            f"column {one.name!r} holds {one.type} in {of_one} and {other.type} in {of_other}; write them with one type"
        ) from error


def _check_types(tables: Tables, schemas: Mapping[str, pa.Schema], of_lines: pa.Schema | None) -> None:
    """Read the columns of files that have another type there than in all files, so that a clash shows at once."""
    for file in tables.files:
        own = schemas.get(file.name, of_lines)
        wanted = pa.schema([each for each in tables.schema if own is not None and _differs(own, each)])
        if not wanted.names or own == tables.schema:
            continue
        if file.kind == "parquet":
            with _reading(file):
                for batch in _parquet_batches(file, wanted.names):
                    _check_cast(batch, wanted, file.name)
        else:
            for _ in replace(tables, files=(file,), schema=wanted).batches():
                pass


def _differs(own: pa.Schema, field: pa.Field) -> bool:
    return any(each.name == field.name and each.type != field.type for each in own)


def _check_cast(batch: pa.RecordBatch, schema: pa.Schema, name: str) -> None:
    for each in schema:
        try:
            batch.column(each.name).cast(each.type)
        except pa.ArrowException as error:
            raise InvalidTraining(
                f"column {each.name!r} holds {batch.column(each.name).type} in {name}, which cannot be kept as the "
                f"{each.type} that all files have together: {error}; write them with one type"
            ) from error


def _as_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with what it lacks as nulls, and its columns in the types of all files."""
    if batch.schema.equals(schema):
        return batch
    columns = [
        batch.column(each.name).cast(each.type) if each.name in batch.schema.names else pa.nulls(len(batch), each.type)
        for each in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema([each.with_nullable(True) for each in schema]))


@contextmanager
def _reading(file: Shard) -> Iterator[None]:
    try:
        with failures_named(file.url):
            yield
    except InvalidTraining:
        raise
    except ReplayError as error:
        raise InvalidTraining(error.detail) from error
