"""Parts of shards on their way through the pipeline: each is one value to Ray Data."""

import json
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from replay_service.corpus.ingest.staging import Packed


class End(NamedTuple):
    """The end of a shard: what packing found in it, and the rows that it set aside, as JSON lines in zstandard."""

    packed: Packed
    aside: bytes


class PackedPart(NamedTuple):
    """A part of a shard; the last one brings the end, and has no rows where there are none."""

    rows: pa.Table | None
    end: End | None = None


def as_value(key: str, part: PackedPart) -> pa.Table:
    """A table of one row, which holds all of a part."""
    packed, aside = (None, None) if part.end is None else (json.dumps(asdict(part.end.packed)), part.end.aside)
    return pa.table(
        {
            "shard_key": [key],
            "rows": pa.nulls(1, pa.large_binary()) if part.rows is None else _as_binary(part.rows),
            "packed": pa.array([packed], pa.string()),
            "aside": pa.array([aside], pa.large_binary()),
        }
    )


def _as_binary(table: pa.Table) -> pa.Array:
    """A column of one value, which holds all of the table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    value = sink.getvalue()
    bounds = pa.py_buffer(np.array([0, value.size]))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, bounds, value])


def of_value(value: pa.Table) -> tuple[str, PackedPart]:
    """The key of a shard and the part of it that a table of one row holds."""
    key, rows, packed, aside = (value[name][0] for name in ("shard_key", "rows", "packed", "aside"))
    end = End(Packed(**json.loads(packed.as_py())), aside.as_py()) if packed.is_valid else None
    return key.as_py(), PackedPart(pa.ipc.open_stream(rows.as_buffer()).read_all() if rows.is_valid else None, end)
