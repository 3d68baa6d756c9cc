"""The same rows as a shard of every kind."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from replay_service.corpus.shards.sources import Columns, Document, SetAside, find_shards, read_documents

TABLES = ("web.parquet", "web.arrow", "web.feather", "web.stream.ipc")
LINES = ("web.jsonl", "web.json", "web.ndjson", "web.jsonl.gz", "web.ndjson.zst", "web.jsonl.bz2", "web.json.xz")
ARCHIVES = ("web.tar", "web.tar.gz", "web.tgz", "web.tar.zst")
COLUMNED = (*TABLES, *LINES, *ARCHIVES)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".tgz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as the kind of shard that the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".parquet", ".arrow", ".feather", ".ipc")):
        write_table(path, pa.Table.from_pylist(list(rows)))
    elif ".tar" in path.name or path.suffix == ".tgz":
        members = [(f"{number:04d}.json", json.dumps(row).encode()) for number, row in enumerate(rows)]
        path.write_bytes(compressed(path, archive(members)))
    else:
        path.write_bytes(compressed(path, "".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def write_table(path: Path, table: pa.Table, rows_a_batch: int = 2) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return path
    writer = pa.ipc.new_stream if path.name.endswith((".stream.ipc", ".stream.arrow")) else pa.ipc.new_file
    with writer(path, table.schema) as file:
        file.write_table(table, max_chunksize=rows_a_batch)
    return path


def archive(members: Sequence[tuple[str, bytes]]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            file.addfile(member, io.BytesIO(data))
    return content.getvalue()


def compressed(path: Path, content: bytes) -> bytes:
    """The content as the ending of the name wants it."""
    return COMPRESS[path.suffix](content) if path.suffix in COMPRESS else content


def read(source: Path | str, columns: Columns | None = None) -> list[Document | SetAside]:
    return [each for shard in find_shards(source) for each in read_documents(shard, columns or Columns())]


def texts(source: Path | str, columns: Columns | None = None) -> list[str]:
    """The texts of a source in which no row is set aside."""
    found = []
    for each in read(source, columns):
        assert isinstance(each, Document), each
        assert isinstance(each.content, str)
        found.append(each.content)
    return found


def reasons(source: Path | str, columns: Columns | None = None) -> list[tuple[int, str]]:
    """The rows that are set aside, and why."""
    return [(each.row, each.reason) for each in read(source, columns) if isinstance(each, SetAside)]
