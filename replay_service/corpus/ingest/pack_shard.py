"""The first stage of the pipeline: a shard is tokenized and packed into rows, part by part."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import IO, Any, Final, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import zstandard

from replay_service.corpus.ingest.labelled import judged, labelled_table
from replay_service.corpus.ingest.parts import End, PackedPart
from replay_service.corpus.ingest.pipeline_settings import PipelineSettings
from replay_service.corpus.ingest.staging import Packed
from replay_service.corpus.shards.sources import (
    Document,
    Labelled,
    Reading,
    SetAside,
    Shard,
    in_pieces,
    read_documents,
)
from replay_service.language.packing import PackedRows, Packer, id_dtype
from replay_service.language.tokenizer import ids_of, load_tokenizer
from replay_service.wire.columns import wide_list

AnyDocument = TypeVar("AnyDocument", Document, Labelled)

_DOCUMENTS_AT_ONCE: Final = 256
_CHARACTERS_AT_ONCE: Final = 1 << 20
"""Or ready-made tokens; ids take tens of bytes each until they are packed."""

BATCHES_A_PART: Final = 16
"""Forward passes between two writes: enough to sort rows by length, few enough to lose little when killed."""


def pack_shard(shard: Shard, settings: PipelineSettings, first_row: int = 0) -> Iterator[PackedPart]:
    """Tokenize a shard and pack it, from row `first_row` on, in parts."""
    found, aside = _Found(), io.BytesIO()
    held: pa.Table | None = None
    num_rows = 0
    with zstandard.open(aside, "wt", encoding="utf-8", closefd=False) as file:
        tables = (_packed if settings.classes is None else _labelled)(shard, settings, found, file)
        for part in _in_parts(tables, settings.batch_size * BATCHES_A_PART):
            num_rows += len(part)
            if num_rows > first_row:
                if held is not None:
                    yield PackedPart(held)
                held = part.slice(max(0, first_row + len(part) - num_rows))
    yield PackedPart(held, End(Packed(num_rows, found.num_documents, found.set_aside), aside.getvalue()))


def _in_parts(tables: Iterator[pa.Table], rows_a_part: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows_a_part`, the last of what is left, with a column `row` of their numbers."""
    held: list[pa.Table] = []
    num_held = num_rows = 0
    for table in tables:
        while num_held + len(table) >= rows_a_part:
            missing = rows_a_part - num_held
            yield _numbered([*held, table.slice(0, missing)], num_rows)
            held, num_held, num_rows, table = [], 0, num_rows + rows_a_part, table.slice(missing)  # noqa: PLW2901
        if len(table):
            held.append(table)
            num_held += len(table)
    if held:
        yield _numbered(held, num_rows)


def _numbered(tables: list[pa.Table], first_row: int) -> pa.Table:
    part = pa.concat_tables(tables).combine_chunks()
    return part.add_column(0, "row", pa.array(np.arange(first_row, first_row + len(part))))


@dataclass(slots=True)
class _Found:
    """What has been found in a shard so far, and the position with the latest document or piece of one."""

    position: int = 0
    num_documents: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)


class _Label(NamedTuple):
    """What the rows of one packed line have in common."""

    domain: str
    group: str | None


def _packed(shard: Shard, settings: PipelineSettings, found: _Found, aside: IO[str]) -> Iterator[pa.Table]:
    """Packed rows of a shard, some at a time; documents of one label, or their pieces, are laid end to end."""
    packers: dict[_Label, Packer] = {}
    before = 0
    for some in _some_at_once(_documents(shard, settings, found, aside)):
        contents, goes_on = [each.content for each in some], [not each.begins for each in some]
        ids = ids_of(_tokenizer(settings.model), contents, settings.vocab_size, goes_on)
        labelled: dict[_Label, list[tuple[Any, bool]]] = {}
        for document, its_ids in zip(some, ids, strict=True):
            labelled.setdefault(_Label(document.domain, document.group), []).append((its_ids, document.ends))
        for label, parts in labelled.items():
            if label not in packers:
                packers[label] = Packer(settings.seq_len, settings.ends, id_dtype(settings.vocab_size))
            yield _positioned(_table(label, packers[label].add(*zip(*parts, strict=True))), before, found.position)
        before = found.position
    for label, packer in packers.items():
        yield _positioned(_table(label, packer.finish()), before, before)


def _labelled(shard: Shard, settings: PipelineSettings, found: _Found, aside: IO[str]) -> Iterator[pa.Table]:
    """The samples of a shard, some at a time."""
    before = 0
    for some in _some_at_once(_documents(shard, settings, found, aside)):
        tokenizer = _tokenizer(settings.model) if isinstance(some[0].content, str) else None
        table = labelled_table(some, tokenizer, settings.seq_len, settings.vocab_size)
        yield _positioned(table, before, found.position)
        before = found.position


def _positioned(table: pa.Table, before: int, position: int) -> pa.Table:
    """The rows of documents that a shard holds from `before` on, with the position of each, spread evenly."""
    positions = np.linspace(before, position, len(table) + 1, dtype=np.int64)[1:]
    return table.append_column("position", pa.array(positions))


def _documents(shard: Shard, settings: PipelineSettings, found: _Found, aside: IO[str]) -> Iterator[Any]:
    """The documents, or their pieces, or the samples of a shard; rows that give none are written down."""
    reading = Reading()
    for each in read_documents(shard, settings.columns, reading):
        if isinstance(each, Labelled) and settings.classes is not None:
            each = judged(each, settings.classes, settings.vocab_size)  # noqa: PLW2901
        if isinstance(each, SetAside):
            found.set_aside[each.reason] = found.set_aside.get(each.reason, 0) + 1
            aside.write(json.dumps({"shard": shard.name, **each._asdict()}) + "\n")
        elif isinstance(each, Document):
            found.num_documents += each.ends
            num_bytes, length = reading.position - found.position, len(each.content)
            left = length
            for piece in in_pieces(each):
                left -= len(piece.content)
                found.position = reading.position - num_bytes * left // max(1, length)
                yield piece
        else:
            found.num_documents += 1
            found.position = reading.position
            yield each


def _some_at_once(documents: Iterator[AnyDocument]) -> Iterator[list[AnyDocument]]:
    some: list[AnyDocument] = []
    size = 0
    for document in documents:
        some.append(document)
        size += document.content.size if isinstance(document.content, np.ndarray) else len(document.content)
        if len(some) >= _DOCUMENTS_AT_ONCE or size >= _CHARACTERS_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _table(label: _Label, rows: PackedRows) -> pa.Table:
    return pa.table(
        {
            "domain": pa.array([label.domain] * len(rows), pa.string()),
            "group": pa.array([label.group] * len(rows), pa.string()),
            "input_ids": wide_list(rows.input_ids),
            "length": rows.length,
        }
    )


@lru_cache(maxsize=1)
def _tokenizer(model: str) -> Any:
    return load_tokenizer(model)
