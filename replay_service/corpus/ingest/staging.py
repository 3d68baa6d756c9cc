"""Staging: scored rows, kept until they stand in segments, so that a killed ingest goes on where it was.

staging/<shard>/packed.json                  what packing found in the shard; there once all of it is packed
staging/<shard>/set_aside.jsonl              the rows of the shard that cannot be used, and why
staging/<shard>/<first row>-<rows>.arrow     parts: scored rows of the shard, one after the other
"""

import heapq
import io
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import zstandard

from replay_service.corpus.format.manifest import write_json

SET_ASIDE: Final = "set_aside.jsonl"
_PACKED: Final = "packed.json"
_POSITION: Final = b"position"


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing found in a shard; `set_aside` counts the rows that cannot be used, by reason."""

    num_rows: int
    num_documents: int
    set_aside: dict[str, int]


class Piece(NamedTuple):
    """Rows of one shard, from `first` up to, not including, `stop`."""

    shard_key: str
    first: int
    stop: int


def write_packed(staging: Path, shard_key: str, packed: Packed) -> None:
    write_json(staging / shard_key / _PACKED, asdict(packed))


def read_packed(staging: Path, shard_key: str) -> Packed | None:
    """None while the shard is not packed to its end."""
    try:
        return Packed(**json.loads((staging / shard_key / _PACKED).read_text()))
    except FileNotFoundError:
        return None


def write_aside(staging: Path, shard_key: str, lines: bytes) -> None:
    """Keep the rows of a shard that cannot be used, JSON lines in zstandard; no file where there are none."""
    temporary = staging / shard_key / f"{uuid.uuid4().hex}.partial"
    with temporary.open("wb") as file:
        zstandard.ZstdDecompressor().copy_stream(io.BytesIO(lines), file)
    if temporary.stat().st_size:
        temporary.rename(staging / shard_key / SET_ASIDE)
    else:
        temporary.unlink()


def write_parts(staging: Path, shard_key: str, rows: pa.Table, position: int = 0) -> list[Piece]:
    """Write rows of a shard (with a column `row`, in any order), a part for each run of neighbours.

    A part is there whole or not at all. `position` is how many bytes of the shard had been read with the rows.
    """
    rows = rows.sort_by("row")
    number = rows["row"].to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(number) != 1) + 1).tolist(), len(rows)]
    pieces = []
    for first, stop in pairwise(bounds):
        piece = Piece(shard_key, int(number[first]), int(number[stop - 1]) + 1)
        part = rows.slice(first, stop - first).replace_schema_metadata({_POSITION: str(position)})
        _write(staging / shard_key / _part_name(piece), part)
        pieces.append(piece)
    return pieces


def _write(path: Path, part: pa.Table) -> None:
    temporary = path.with_name(f"{uuid.uuid4().hex}.partial")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, part.schema) as writer:
        writer.write_table(part.combine_chunks())
    temporary.rename(path)


def _part_name(piece: Piece) -> str:
    return f"{piece.first:012d}-{piece.stop - piece.first:09d}.arrow"


def parts_of(staging: Path, shard_key: str) -> list[Piece]:
    """The parts of a shard, by their first row; those that a retried task wrote may overlap."""
    names = sorted(path.stem.split("-") for path in (staging / shard_key).glob("*.arrow"))
    return [Piece(shard_key, int(first), int(first) + int(num)) for first, num in names]


def position_of(staging: Path, piece: Piece) -> int:
    """How many bytes of its shard had been read with a part; 0 where an earlier version has written it."""
    with pa.ipc.open_file(pa.memory_map(str(staging / piece.shard_key / _part_name(piece)))) as reader:
        return int((reader.schema.metadata or {}).get(_POSITION, b"0"))


def drop(staging: Path, shard_key: str) -> None:
    shutil.rmtree(staging / shard_key, ignore_errors=True)


@dataclass(slots=True)
class ReadyRows:
    """How many rows of a shard are staged without a gap, counted from its first."""

    stop: int = 0
    _later: list[tuple[int, int]] = field(default_factory=list)

    def add(self, parts: Iterable[Piece]) -> None:
        for part in parts:
            heapq.heappush(self._later, (part.first, part.stop))
        while self._later and self._later[0][0] <= self.stop:
            self.stop = max(self.stop, heapq.heappop(self._later)[1])


def read_rows(staging: Path, pieces: Iterable[Piece]) -> pa.Table:
    """The staged rows of the given pieces, in their order; their columns but `row`. All must be there."""
    return pa.concat_tables([table for piece in pieces for table in _tables(staging, piece)])


def _tables(staging: Path, piece: Piece) -> Iterator[pa.Table]:
    row = piece.first
    for part in parts_of(staging, piece.shard_key):
        if row < piece.stop and part.first <= row < part.stop:
            stop = min(part.stop, piece.stop)
            with pa.ipc.open_file(pa.memory_map(str(staging / piece.shard_key / _part_name(part)))) as reader:
                yield reader.read_all().slice(row - part.first, stop - row).drop_columns("row")
            row = stop
    assert row == piece.stop, f"rows {row} to {piece.stop} of staged shard {piece.shard_key} are missing"
