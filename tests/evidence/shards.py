"""Documents of each source, set apart into text to train on and text to measure on, as Parquet shards."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

MOST_BYTES: Final = 16_000
"""Of a document: long ones are cut there, so that none is most of its domain."""
LEAST_BYTES: Final = 200
"""Shorter documents are left out: pages that only point to another."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """Bytes of text to take of a source."""

    train: int
    heldout: int


@dataclass(frozen=True, slots=True)
class Split:
    """Documents of one source; no document is in both parts."""

    train: list[str]
    heldout: list[str]


class Splitter:
    """Sets documents apart by a hash of their content, which no seed changes.

    A document is given once, over all sources.
    """

    def __init__(self) -> None:
        self._given: set[bytes] = set()

    def split(self, documents: Iterable[str], amounts: Amounts) -> Split:
        """The first documents in the order of their hashes are held out, the next ones are trained on."""
        in_order = iter(sorted(self._new(documents)))
        heldout = _take(in_order, amounts.heldout)
        return Split(_take(in_order, amounts.train), heldout)

    def _new(self, documents: Iterable[str]) -> Iterator[tuple[bytes, str]]:
        for document in documents:
            text = _cut(document.strip())
            digest = sha256(" ".join(text.split()).encode()).digest()
            if len(text.encode()) >= LEAST_BYTES and digest not in self._given:
                self._given.add(digest)
                yield digest, text


def _cut(text: str) -> str:
    """The text up to `MOST_BYTES`, of which a character may have several."""
    return text.encode()[:MOST_BYTES].decode(errors="ignore")


def _take(documents: Iterator[tuple[bytes, str]], num_bytes: int) -> list[str]:
    taken: list[str] = []
    while num_bytes > 0 and (found := next(documents, None)) is not None:
        taken.append(found[1])
        num_bytes -= len(found[1].encode())
    return taken


def write_shard(path: Path, domain: str, documents: list[str]) -> None:
    """A Parquet file with the columns `text` and `domain`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    pq.write_table(pa.table({"text": documents, "domain": [domain] * len(documents)}), partial)
    partial.rename(path)
