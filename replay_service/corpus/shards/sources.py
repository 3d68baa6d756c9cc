"""Sources: shards in a file, a folder or a glob, here or behind a URL, and the documents in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from replay_service.corpus.shards.documents import (
    Columns,
    Document,
    Labelled,
    Row,
    SetAside,
    document_of,
    in_pieces,
)
from replay_service.corpus.shards.filesystems import failures_named
from replay_service.corpus.shards.listing import Listing, Shard, find_shards, look_into
from replay_service.corpus.shards.places import locate_within
from replay_service.corpus.shards.rows import check_head, read_rows
from replay_service.corpus.shards.urls import is_url, printable
from replay_service.errors import UnusableSource
from replay_service.language.pretrained import LFS_POINTER

__all__ = [
    "Columns",
    "Document",
    "Labelled",
    "Listing",
    "Reading",
    "SetAside",
    "Shard",
    "check_fetched",
    "check_readable",
    "find_shards",
    "fingerprint_of",
    "in_pieces",
    "is_url",
    "look_into",
    "printable",
    "read_documents",
]

_MOST_POINTER_BYTES: Final = 1024
"""A larger file is no pointer, by the specification of Git LFS."""


def fingerprint_of(shard: Shard) -> str:
    """The size of a shard and a hash of parts of its content; raises UnusableSource when it cannot be read."""
    with failures_named(shard.url, "shard "):
        return locate_within(shard.url, shard.allowed).fingerprint()


def check_readable(shard: Shard, columns: Columns) -> None:
    """Look at the head of a shard, so that what is plainly wrong shows before any work.

    Raises:
        UnusableSource: when it is missing or damaged, lacks a column, or begins with nothing that can be used.
    """
    name = f"shard {printable(shard.url)}"
    check_fetched(shard)
    with failures_named(shard.url, "shard "):
        check_head(shard.kind, locate_within(shard.url, shard.allowed), columns, name)


@dataclass(slots=True)
class Reading:
    """How far a shard has been read: the bytes of its file with the latest document; of a table, about how many."""

    position: int = 0


def check_fetched(shard: Shard) -> None:
    """Raises UnusableSource when a file is a pointer of Git LFS, as a clone leaves it without the files themselves."""
    if not 0 < shard.num_bytes <= _MOST_POINTER_BYTES:
        return
    with failures_named(shard.url, "shard "), locate_within(shard.url, shard.allowed).open_stream() as content:
        if content.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UnusableSource(
                f"shard {printable(shard.url)} is a Git LFS pointer in place of the file; run `git lfs pull` there"
            )


def read_documents(
    shard: Shard, columns: Columns, reading: Reading | None = None
) -> Iterator[Document | Labelled | SetAside]:
    """The documents of a shard, in order, and the rows that give none.

    A plain text is one document; a long one comes in pieces.

    Args:
        shard: what to read.
        columns: what of it.
        reading: is kept up to date.

    Raises:
        UnusableSource: when the shard is missing or damaged, or lacks a column.
    """
    with failures_named(shard.url, "shard "):
        place = locate_within(shard.url, shard.allowed)
        for row in read_rows(shard.kind, place, columns, f"shard {printable(shard.url)}"):
            if reading is not None and isinstance(row, Row):
                reading.position = row.position
            yield document_of(row, columns, shard.domain) if isinstance(row, Row) else row
