"""Readers: the rows of a shard of each kind, in order, in bounded memory.

kind      a row is           its columns
parquet   a table row        those that are asked for
arrow     a table row        those that are asked for
jsonl     a line             the members of the line's object
text      the whole file     the text; of a long file in several rows, one after the other
tar       a sample           the members of its `.json` member's object; the text is its `.txt` member if it has one
"""

import codecs
import io
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from replay_service.corpus.shards.archives import members_of
from replay_service.corpus.shards.content import Content, content_of
from replay_service.corpus.shards.documents import (
    BLANK,
    LINK,
    NO_MEMBER,
    NOT_JSON,
    NOT_UTF8,
    Columns,
    Row,
    SetAside,
    decoded,
    document_of,
    is_of_another_type,
    set_aside,
)
from replay_service.corpus.shards.filesystems import Place
from replay_service.corpus.shards.tensors import is_list, tensors_of
from replay_service.errors import UnusableSource
from replay_service.language.pieces import cut_place, with_last

Rows = Generator[Row | SetAside, None, None]

MAX_LINE_BYTES = 256 << 20
"""A longer line is a file of another kind, which must not fill the memory."""

_HEAD_ROWS = 100
_MOST_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 4 << 20
_PARQUET_BUFFER_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20
_LONG_TEXT_BYTES = 4 << 20
_BYTES_OF = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


def read_rows(kind: str, place: Place, columns: Columns, name: str) -> Rows:
    """The rows of the shard of a `kind` at a `place`; `name` stands for it in messages.

    Raises:
        UnusableSource: when it lacks a column altogether.
        OSError, EOFError, ValueError, pa.ArrowException, tarfile.TarError: when it is missing or damaged.
    """
    return _READERS[kind](place, columns, name)


def check_head(kind: str, place: Place, columns: Columns, name: str) -> None:
    """Read a few rows, so that what is plainly wrong shows; raises what `read_rows` raises."""
    if kind == "text":
        _require_plain(columns, name)
        with content_of(place) as content:
            content.read(1)
        return
    first = None
    with closing(read_rows(kind, place, columns, name)) as rows:
        for row in islice(rows, _HEAD_ROWS):
            if isinstance(row, Row):
                _require_columns(columns, list(row.fields), name)
                _require_types(row, rows, columns, name)
                return
            first = first or row
            if row.excerpt.startswith("["):
                break  # one array of many lines, some of which could pass for rows
    if first is not None:
        raise UnusableSource(
            f"{name} begins with nothing to read: row {first.row} is {first.reason}: {first.excerpt}; "
            + ("write one JSON object a line, or take it out" if kind == "jsonl" else "take it out")
        )


def _require_types(first: Row, others: Rows, columns: Columns, name: str) -> None:
    """Refuse a shard whose first rows hold values of another type than is asked for, and nothing that can be used."""
    wrong = None
    for row in (first, *islice(others, _HEAD_ROWS)):
        found = document_of(row, columns, "") if isinstance(row, Row) else row
        if not isinstance(found, SetAside):
            return
        if wrong is None and isinstance(row, Row) and is_of_another_type(row, columns):
            wrong = found
    if wrong is not None:
        raise UnusableSource(
            f"{name} holds nothing that can be used in its first rows: row {wrong.row}: {wrong.reason}: "
            f"{wrong.excerpt}; {_advice(columns)}"
        )


def _advice(columns: Columns) -> str:
    if columns.inputs is not None or columns.tokens is not None:
        return "name another column"
    return (
        "name a column of strings; chats (lists of messages) are written as strings first, with the model's "
        "tokenizer.apply_chat_template(messages, tokenize=False)"
    )


def _require_plain(columns: Columns, name: str) -> None:
    if any(each is not None for each in (columns.tokens, columns.group, columns.inputs, columns.label)):
        raise UnusableSource(f"{name} is plain text, which has neither token ids nor groups nor labels; take it out")


def _require_columns(columns: Columns, present: list[str], name: str) -> None:
    for role, column in columns.roles().items():
        if present.count(column) != 1:
            lack = "has more than one" if column in present else "has no"
            have = ", ".join(map(str, present)) or "none"
            raise UnusableSource(f"{name} {lack} column {column!r} (its columns: {have}); name another {role} column")


class _Batch(NamedTuple):
    """Rows of a table, and the bytes of the file, about, before them and to their end."""

    rows: pa.RecordBatch
    first: int
    stop: int


def _read_parquet(place: Place, columns: Columns, name: str) -> Rows:
    with place.open_file() as content, pq.ParquetFile(content, buffer_size=_PARQUET_BUFFER_BYTES) as file:
        _require_columns(columns, file.schema_arrow.names, name)
        wanted = list(dict.fromkeys(columns.roles().values()))
        yield from _table_rows(_parquet_batches(file, content.size(), wanted), columns)


def _parquet_batches(file: pq.ParquetFile, num_bytes: int, wanted: list[str]) -> Iterator[_Batch]:
    num_rows = 0
    for batch in _parquet_rows(file, wanted):
        first, num_rows = num_rows, num_rows + len(batch)
        yield _Batch(batch, *(num_bytes * each // file.metadata.num_rows for each in (first, num_rows)))


def _parquet_rows(file: pq.ParquetFile, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        chunks = [group.column(i) for i in range(group.num_columns)]
        num_bytes = sum(each.total_uncompressed_size for each in chunks if each.path_in_schema.split(".")[0] in wanted)
        rows = _rows_at_once(num_bytes, group.num_rows)
        yield from file.iter_batches(columns=wanted, batch_size=rows, row_groups=[number])


def _read_arrow(place: Place, columns: Columns, name: str) -> Rows:
    """Both IPC formats: a file begins with a magic word, a stream with the mark of a message."""
    with place.open_file() as content:
        magic = content.read(6)
        if magic == b"ARROW1":
            _require_columns(columns, pa.ipc.open_file(content).schema.names, name)
            yield from _table_rows(_arrow_file_batches(content, columns), columns)
            return
    if magic[:4] == b"FEA1":
        raise UnusableSource(f"{name} is of the first Feather version, which is long retired; write it anew")
    if magic[:4] != b"\xff\xff\xff\xff":
        raise UnusableSource(f"{name} is neither an Arrow file nor an Arrow stream; mend it or take it out")
    with content_of(place) as content, pa.ipc.open_stream(content) as stream:
        _require_columns(columns, stream.schema.names, name)
        yield from _table_rows(_arrow_stream_batches(stream, content), columns)


def _arrow_stream_batches(stream: pa.RecordBatchStreamReader, content: Content) -> Iterator[_Batch]:
    first = 0
    for batch in stream:
        yield _Batch(batch, first, content.position())
        first = content.position()


def _arrow_file_batches(content: pa.NativeFile, columns: Columns) -> Iterator[_Batch]:
    schema = pa.ipc.open_file(content).schema
    wanted = sorted({schema.get_field_index(column) for column in columns.roles().values()})
    file = pa.ipc.open_file(content, options=pa.ipc.IpcReadOptions(included_fields=wanted))
    num_bytes = content.size()
    for number in range(file.num_record_batches):
        bounds = (num_bytes * each // file.num_record_batches for each in (number, number + 1))
        yield _Batch(file.get_batch(number), *bounds)


def _rows_at_once(num_bytes: int, num_rows: int) -> int:
    """How many rows of a table to take out at once, of which `num_rows` take `num_bytes`."""
    return min(_MOST_ROWS_AT_ONCE, max(1, _BYTES_AT_ONCE * num_rows // max(1, num_bytes)))


def _table_rows(batches: Iterable[_Batch], columns: Columns) -> Rows:
    wanted = list(dict.fromkeys(columns.roles().values()))
    number = 0
    for batch, begin, end in batches:
        rows = _rows_at_once(sum(batch.column(each).nbytes for each in wanted), len(batch))
        for first in range(0, len(batch), rows):
            part = batch.slice(first, rows)
            values_at = zip(*(values_of(part.column(each), each == columns.inputs) for each in wanted), strict=True)
            for place, values in enumerate(values_at, first + 1):
                position = begin + (end - begin) * place // len(batch)
                yield Row(number, dict(zip(wanted, values, strict=True)), position=position)
                number += 1


def values_of(column: pa.Array, are_tensors: bool = False) -> list[Any]:
    """The values of a column: text as bytes, since it may not be UTF-8, and lists of integers as numpy arrays."""
    column = _sound(column)
    if are_tensors:
        return tensors_of(column)
    if is_list(column.type) and pa.types.is_integer(column.type.value_type):
        return [_integers(scalar.values) for scalar in column]
    values: list[Any] = column.to_pylist()
    return values


def _sound(column: pa.Array) -> pa.Array:
    """The column without dictionaries, text as bytes, its offsets checked: damaged ones would reach past its memory."""
    if pa.types.is_dictionary(column.type):
        column = pa.DictionaryArray.from_arrays(column.indices, _sound(column.dictionary)).dictionary_decode()
    elif column.type in _BYTES_OF:
        column = column.view(_BYTES_OF[column.type])
    column.validate(full=True)
    return column


def _integers(values: pa.Array | None) -> Any:
    if values is None:
        return None
    return values.to_pylist() if values.null_count else values.to_numpy()


def _read_jsonl(place: Place, columns: Columns, name: str) -> Rows:
    with content_of(place) as content, io.BufferedReader(content, _CHUNK_BYTES) as lines:
        number = num_used = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise UnusableSource(f"{name} has a line of more than {MAX_LINE_BYTES} bytes; write one object a line")
            num_used += len(line)
            if line.strip():
                yield _json_row(number, line, content.position(num_used))
            number += 1


def _json_row(number: int, content: bytes, position: int) -> Row | SetAside:
    text = decoded(content)
    if text is None:
        return set_aside(number, NOT_UTF8, content)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    return Row(number, fields, position=position) if isinstance(fields, dict) else set_aside(number, NOT_JSON, text)


def _read_text(place: Place, columns: Columns, name: str) -> Rows:
    _require_plain(columns, name)
    fields = {} if columns.domain is None else {columns.domain: None}
    with content_of(place) as content:
        head = content.read(_LONG_TEXT_BYTES)
        if len(head) < _LONG_TEXT_BYTES:
            yield Row(0, fields | {columns.text: head}, position=content.position())
            return
    reason = _unusable_text(place)
    if reason is not None:
        yield set_aside(0, reason, head)
        return
    begins = True
    for (text, num_read), is_last in with_last(_decoded(place)):
        yield Row(0, fields | {columns.text: text}, begins, is_last, num_read)
        begins = False


def _unusable_text(place: Place) -> str | None:
    """Why a long text cannot be used; None if it can. A text is one document, which is taken whole or not at all."""
    try:
        return BLANK if all(not piece.strip() for piece, _ in _decoded(place)) else None
    except UnicodeDecodeError:
        return NOT_UTF8


def _decoded(place: Place) -> Iterator[tuple[str, int]]:
    """A text in UTF-8 in pieces, cut where tokenizers have no token across, and the position in the file with each."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest = ""
    with content_of(place) as content:
        while piece := content.read(_CHUNK_BYTES):
            rest += decoder.decode(piece)
            while (end := cut_place(rest)) < len(rest):
                yield rest[:end], content.position()
                rest = rest[end:]
        decoder.decode(b"", final=True)
        end_of_file = content.position()
    yield rest, end_of_file


def _read_tar(place: Place, columns: Columns, name: str) -> Rows:
    """Samples of a WebDataset archive: neighbours whose paths are the same up to the first dot of the name.

    A second member of one name begins a sample of its own, so that none is lost.
    """
    number, key, members = 0, None, dict[str, bytes | None]()
    with content_of(place) as content:
        for member in members_of(cast(IO[bytes], content)):
            stem, _, ending = member.path.name.partition(".")
            ending = ending.lower()
            if key not in (None, member.path.with_name(stem)) or ending in members:
                yield _sample(number, key, members, columns, content.position())
                number, members = number + 1, {}
            key = member.path.with_name(stem)
            if ending in ("txt", "json"):
                members[ending] = None if member.content is None else member.content()
        if key is not None:
            yield _sample(number, key, members, columns, content.position())


def _sample(
    number: int, key: object, members: dict[str, bytes | None], columns: Columns, position: int
) -> Row | SetAside:
    if not members:
        return set_aside(number, NO_MEMBER, str(key))
    text, described = members.get("txt"), members.get("json")
    if None in members.values():
        return set_aside(number, LINK, str(key))
    needs_json = text is None or set(columns.roles()) != {"text"}
    row = _json_row(number, described, position) if needs_json and described is not None else Row(number, {})
    if isinstance(row, SetAside) or text is None:
        return row
    return Row(number, {**row.fields, columns.text: text}, position=position)


_READERS: dict[str, Callable[[Place, Columns, str], Rows]] = {
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
    "arrow": _read_arrow,
    "text": _read_text,
    "tar": _read_tar,
}
