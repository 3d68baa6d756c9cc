"""Segment files: immutable, uncompressed Arrow IPC files of rows of one width, with checksums beside them.

00000000.arrow   one record batch; a row's place in it follows from its number, so nobody needs the footer
00000000.crc32   a little-endian uint32 for each 64 KiB block of the segment: the CRC-32 of the block
"""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.corpus.segments import SampleRows

BLOCK_BYTES: Final = 64 << 10
"""What is checked, and fetched from object storage, at once."""


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """What a reader must know of a segment file to read rows and to check them."""

    num_bytes: int
    offsets: dict[str, int]
    """Where each column's values begin in the file, bytes."""
    row_types: dict[str, str]
    """One row of each column as numpy names it: `<i4` is a number, `(512,)<u2` are 512 of them."""
    checksum: int
    """CRC-32 of the checksums file."""


def checksums_file(file: str) -> str:
    """The name of the checksums file of a segment file."""
    return file.removesuffix(".arrow") + ".crc32"


def num_blocks(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES)


def write_segment(path: Path, rows: SampleRows) -> SegmentFile:
    """Write rows as one record batch, and its checksums beside it; both are there whole or not at all.

    Syncing the folder, so that the new names last, is for the caller: it may write many segments before.
    """
    batch = rows.to_arrow()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    checksums = _block_checksums(temporary).tobytes()
    _put(path.with_name(checksums_file(path.name)), checksums)
    written = SegmentFile(
        num_bytes=temporary.stat().st_size,
        offsets=_offsets(temporary),
        row_types={name: _row_type(column) for name, column in rows.columns().items()},
        checksum=zlib.crc32(checksums),
    )
    _sync(temporary)
    temporary.replace(path)
    return written


def _offsets(path: Path) -> dict[str, int]:
    """Where the values of each column begin: the addresses that Arrow finds them at in the mapped file."""
    with pa.memory_map(str(path)) as mapped:
        whole = mapped.read_buffer()
        with pa.ipc.open_file(pa.BufferReader(whole)) as reader:
            batch = reader.get_batch(0)
        return {name: batch.column(name).buffers()[-1].address - whole.address for name in batch.schema.names}


def _row_type(column: NDArray[Any]) -> str:
    return f"{column.shape[1:]}{column.dtype.str}" if column.ndim > 1 else column.dtype.str


def _block_checksums(path: Path) -> NDArray[np.uint32]:
    content = np.memmap(path, np.uint8, "r")
    blocks = (content[first : first + BLOCK_BYTES].data for first in range(0, len(content), BLOCK_BYTES))
    return np.array([zlib.crc32(block) for block in blocks], dtype="<u4")


def _put(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    _sync(temporary)
    temporary.replace(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
