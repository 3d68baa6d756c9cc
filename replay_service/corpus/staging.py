"""Staging: scored rows of finished shards, kept until they become segments, so that a killed ingest resumes.

staging/<settings>/<shard>/packed.json   what packing found in the shard
staging/<settings>/<shard>/*.arrow       parts: scored rows of the shard
staging/<settings>/<shard>/done          all its rows are in its parts
"""

import uuid
from dataclasses import asdict, dataclass
from functools import cached_property
from json import loads
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.corpus.manifest import write_json
from replay_service.corpus.segments import SampleRows

_PACKED = "packed.json"
_DONE = "done"


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing found in a shard."""

    num_rows: int
    num_documents: int
    num_set_aside: int


def write_packed(staging: Path, shard_key: str, packed: Packed) -> None:
    folder = staging / shard_key
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _PACKED, asdict(packed))


def read_packed(staging: Path, shard_key: str) -> Packed:
    return Packed(**loads((staging / shard_key / _PACKED).read_text()))


def write_part(staging: Path, shard_key: str, part: pa.Table) -> None:
    """Write a part under a name of its own; it is there whole or not at all."""
    path = staging / shard_key / f"{uuid.uuid4().hex}.arrow"
    temporary = path.with_suffix(".partial")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, part.schema) as writer:
        writer.write_table(part.combine_chunks())
    temporary.rename(path)


def mark_done(staging: Path, shard_key: str) -> None:
    (staging / shard_key / _DONE).touch()


def is_done(staging: Path, shard_key: str) -> bool:
    return (staging / shard_key / _DONE).exists()


class StagedRows:
    """The scored rows of finished shards, each once, in the order of the shards and of the rows in them."""

    def __init__(self, staging: Path, shard_keys: list[str]) -> None:
        self._files = [path for key in shard_keys for path in sorted((staging / key).glob("*.arrow"))]
        self._batches = [_map_part(path) for path in self._files]
        shard = {key: index for index, key in enumerate(shard_keys)}
        sizes = [len(batch) for batch in self._batches]
        self._file = np.repeat(np.arange(len(sizes)), sizes)
        self._row_in_file = np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, dtype=np.int64)])
        shard_of_file = np.array([shard[path.parent.name] for path in self._files], dtype=np.int64)
        row = self._column("row", np.int64)
        # A retried task may have written a row twice.
        _, first = np.unique(np.stack([shard_of_file[self._file], row]), axis=1, return_index=True)
        self._index = first

    def __len__(self) -> int:
        return len(self._index)

    @cached_property
    def base_loss(self) -> NDArray[np.float32]:
        return self._column("base_loss", np.float32)[self._index]

    @cached_property
    def length(self) -> NDArray[np.int32]:
        return self._column("length", np.int32)[self._index]

    @cached_property
    def domain(self) -> NDArray[np.str_]:
        return self._column("domain", np.str_)[self._index]

    def address(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """File and row in it of the rows with the given indices."""
        chosen = self._index[index]
        return self._file[chosen], self._row_in_file[chosen]

    def file(self, number: int) -> SampleRows:
        batch = self._batches[number]
        unknown = pa.array(np.zeros(len(batch), dtype=np.int32))
        return SampleRows.from_arrow(batch.append_column("stratum", unknown))

    def _column(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        columns = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self._batches]
        return np.concatenate(columns or [np.empty(0)]).astype(dtype)


def _map_part(path: Path) -> pa.RecordBatch:
    with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
        return reader.get_batch(0)
