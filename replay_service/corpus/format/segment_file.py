"""Segment files: immutable, uncompressed Arrow IPC files of records of one width, with checksums beside them.

00000000.arrow   one record batch with one fixed-size binary column, `row`: the records, end to end
00000000.crc32   a little-endian uint32 for each 64 KiB block of the segment: the CRC-32 of the block

All fields of a sample lie beside one another in its record, so that a random sample is read in one place, which follows
from its number: nobody needs the footer. The schema's metadata say under `record` what a record holds, in the words
that `numpy.dtype` takes, so that anyone can read a segment:

    batch = pyarrow.ipc.open_file("00000000.arrow").get_batch(0)
    record = numpy.dtype(json.loads(batch.schema.metadata[b"record"]))
    rows = numpy.frombuffer(batch["row"].buffers()[1], record, len(batch))

Then `rows["input_ids"]` are the token ids of all its samples; `SampleRows` says what the fields mean.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from replay_service.corpus.format.records import SampleRows
from replay_service.wire.columns import wide_binary

BLOCK_BYTES: Final = 64 << 10
"""What is checked, and fetched from object storage, at once."""


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """What a reader must know of a segment file to read rows and to check them."""

    num_bytes: int
    rows_at: int
    """Where the first record begins in the file, bytes."""
    record: dict[str, Any]
    """What a record holds, as `numpy.dtype` takes it: the fields' names, their formats (`<i4` is a number, `(512,)<u2`
    are 512 of them) and their offsets in the record, and the record's width (itemsize), bytes."""
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
    record = _described(rows.records.dtype)
    batch = pa.record_batch({"row": wide_binary(_as_bytes(rows.records))}, metadata={"record": json.dumps(record)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    checksums = _block_checksums(temporary).tobytes()
    _put(path.with_name(checksums_file(path.name)), checksums)
    written = SegmentFile(
        num_bytes=temporary.stat().st_size,
        rows_at=_rows_at(temporary),
        record=record,
        checksum=crc32(checksums),
    )
    _sync(temporary)
    temporary.replace(path)
    return written


def _described(record: np.dtype[np.void]) -> dict[str, Any]:
    """What `numpy.dtype` makes the record of again, fit for JSON."""
    names = list(record.names or ())
    return {
        "names": names,
        "formats": [f"{record[name].shape or ''}{record[name].base.str}" for name in names],
        "offsets": [record.fields[name][1] for name in names] if record.fields else [],
        "itemsize": record.itemsize,
    }


def _as_bytes(records: NDArray[np.void]) -> NDArray[np.uint8]:
    """[n] records as bytes, [n, width]."""
    return np.ascontiguousarray(records).view(np.uint8).reshape(len(records), records.itemsize)


def _rows_at(path: Path) -> int:
    """Where the records begin: the address that Arrow finds them at in the mapped file."""
    with pa.memory_map(str(path)) as mapped:
        whole = mapped.read_buffer()
        with pa.ipc.open_file(pa.BufferReader(whole)) as reader:
            rows_at: int = reader.get_batch(0)["row"].buffers()[1].address - whole.address
    return rows_at


def _block_checksums(path: Path) -> NDArray[np.uint32]:
    content = np.memmap(path, np.uint8, "r")
    blocks = (content[first : first + BLOCK_BYTES].data for first in range(0, len(content), BLOCK_BYTES))
    return np.array([crc32(block) for block in blocks], dtype="<u4")


def _put(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    _sync(temporary)
    temporary.replace(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
