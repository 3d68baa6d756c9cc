"""Shards: finding them, and reading the documents in them."""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from replay_service.errors import UnusableSource

_KINDS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".md": "text",
}
_SHARD_NUMBER = re.compile(r"[-_.]\d+([-_]of[-_]\d+)?$")


class Document(NamedTuple):
    """One document; `text` is None when the row holds no usable text."""

    domain: str
    text: str | None


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file.

    Attributes:
        path: where it is.
        kind: `parquet`, `jsonl` or `text`.
        domain: the domain of its documents when no column tells: the first folder below the source, else the file's
            name without its shard number.
    """

    path: Path
    kind: str
    domain: str


@dataclass(frozen=True, slots=True)
class Columns:
    """Where in a row the text and, if given, the domain stand."""

    text: str = "text"
    domain: str | None = None


def find_shards(source: Path) -> list[Shard]:
    """The shards of a file or, recursively, of a folder, in name order; hidden files are passed over.

    Raises:
        UnusableSource: when there is no such path, or nothing in it that can be read.
    """
    if source.is_file():
        if _kind(source) is None:
            raise UnusableSource(f"{source} is no shard: {_known_kinds()}")
        return [_shard(source, source.parent)]
    if not source.is_dir():
        raise UnusableSource(f"there is no file or folder {source}")
    files = (path for path in sorted(source.rglob("*")) if path.is_file() and not path.name.startswith("."))
    shards = [_shard(path, source) for path in files if _kind(path)]
    if not shards:
        raise UnusableSource(f"{source} holds no shard: {_known_kinds()}")
    return shards


def check_readable(shard: Shard, columns: Columns) -> None:
    """Look at the head of a shard, so that what is plainly wrong shows before any work; raises UnusableSource."""
    if shard.kind != "text":
        next(read_documents(shard, columns), None)
    elif not os.access(shard.path, os.R_OK):
        raise UnusableSource(f"shard {shard.path} cannot be read: permission denied")


def read_documents(shard: Shard, columns: Columns) -> Iterator[Document]:
    """The documents of a shard, in order. A plain-text file is one document.

    Raises:
        UnusableSource: when the file is missing or damaged, or lacks the text column.
    """
    readers = {"parquet": _read_parquet, "jsonl": _read_jsonl, "text": _read_text}
    try:
        yield from readers[shard.kind](shard, columns)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, pa.ArrowException) as error:
        raise UnusableSource(f"shard {shard.path} cannot be read: {error}; mend it or take it out") from error


def _read_parquet(shard: Shard, columns: Columns) -> Iterator[Document]:
    with pq.ParquetFile(shard.path) as file:
        wanted = [columns.text] + ([columns.domain] if columns.domain else [])
        for name in wanted:
            _require_column(shard, name, file.schema_arrow.names)
        for batch in file.iter_batches(columns=wanted, batch_size=1024):
            texts = batch.column(0).to_pylist()
            domains = batch.column(1).to_pylist() if columns.domain else [shard.domain] * len(texts)
            for text, domain in zip(texts, domains, strict=True):
                yield _document(text, domain, shard)


def _read_jsonl(shard: Shard, columns: Columns) -> Iterator[Document]:
    opener = gzip.open if shard.path.suffix == ".gz" else open
    with opener(shard.path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if not line.strip():
                continue
            row = json.loads(line)
            present = list(row) if isinstance(row, dict) else []
            for name in (columns.text, columns.domain):
                if name is not None:
                    _require_column(shard, name, present)
            yield _document(row[columns.text], row[columns.domain] if columns.domain else shard.domain, shard)


def _read_text(shard: Shard, _columns: Columns) -> Iterator[Document]:
    yield _document(shard.path.read_text(encoding="utf-8"), shard.domain, shard)


def _document(text: object, domain: object, shard: Shard) -> Document:
    return Document(shard.domain if domain in (None, "") else str(domain), _usable(text))


def _usable(text: object) -> str | None:
    """The text, unless it is blank or holds half a surrogate pair, which no tokenizer takes."""
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


def _require_column(shard: Shard, name: str, present: list[str]) -> None:
    if name not in present:
        have = ", ".join(present) or "none"
        raise UnusableSource(
            f"shard {shard.path} has no column {name!r} (its columns: {have}); name the right one with --text-column "
            "or --domain-column"
        )


def _shard(path: Path, root: Path) -> Shard:
    below = path.relative_to(root).parts
    stem = path.name.split(".")[0]
    domain = below[0] if len(below) > 1 else _SHARD_NUMBER.sub("", stem)
    return Shard(path, _kind(path) or "", domain)


def _kind(path: Path) -> str | None:
    kind = _KINDS.get(Path(path.stem).suffix if path.suffix == ".gz" else path.suffix)
    return kind if path.suffix != ".gz" or kind == "jsonl" else None


def _known_kinds() -> str:
    return f"shards are files ending in {', '.join(_KINDS)} or .jsonl.gz"
