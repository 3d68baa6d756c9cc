"""Shards of random rows, staged as an ingest stages them, and the growth of a corpus from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.corpus.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from replay_service.corpus.ingest.growth import GrowingCorpus
from replay_service.corpus.ingest.staging import (
    SET_ASIDE,
    Packed,
    ReadyRows,
    parts_of,
    read_packed,
    write_packed,
    write_parts,
)
from tests.corpus.worlds import staged_rows

DOMAINS = ("web", "code", "books", "art")
NOTHING = Manifest.of_nothing(
    name="wiki",
    model="none",
    tokenizer_fingerprint="none",
    vocab_size=300,
    separator_id=0,
    seq_len=12,
    precision="float32",
    num_quantiles=2,
    partition_by="domain",
    topk=0,
    recipe="none",
)


@dataclass(frozen=True)
class Shards:
    """What there is to ingest: the staged rows of each shard, and how many of its rows cannot be used."""

    rows: dict[str, pa.Table]
    num_set_aside: dict[str, int]

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.rows.values()))

    def packed(self, key: str) -> Packed:
        set_aside = {"blank": self.num_set_aside[key]} if self.num_set_aside[key] else {}
        return Packed(len(self.rows[key]), 2 * len(self.rows[key]) + 1, set_aside)

    def line(self, columns: Sequence[str]) -> list[tuple[object, ...]]:
        """The rows of all shards, one after the other."""
        table = pa.concat_tables(self.rows.values())
        return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def shards_of(*sizes: int, set_aside: Sequence[int] = (), topk: int = 0, seed: int = 0) -> Shards:
    """Shards of so many rows; the first domains are in all of them, later ones come with later shards."""
    rows, num_set_aside = {}, {}
    for number, (size, bad) in enumerate(zip(sizes, [*set_aside, *[0] * len(sizes)], strict=False)):
        names = [DOMAINS[row % (2 + number // 2) % len(DOMAINS)] for row in range(size)]
        key = f"shard-{number}"
        rows[key] = staged_rows(names, seed=1000 * seed + number, topk=topk)
        num_set_aside[key] = bad
    return Shards(rows, num_set_aside)


def domain_of(staged: pa.Table) -> NDArray[np.str_]:
    return np.array(staged["domain"].to_pylist())


@dataclass
class Ingest:
    """An ingest of shards into `folder`; a new one on the same folder goes on as an ingest does that was killed."""

    folder: Path
    shards: Shards
    rows_per_segment: int
    growing: GrowingCorpus = field(init=False)
    ready: dict[str, ReadyRows] = field(init=False)

    def __post_init__(self) -> None:
        there = (self.folder / MANIFEST_NAME).exists()
        self.growing = GrowingCorpus(
            folder=self.folder,
            staging=self.folder / "staging",
            shards=list(self.shards.rows),
            manifest=read_manifest(self.folder) if there else NOTHING,
            rows_per_segment=self.rows_per_segment,
            group_of=domain_of,
        )
        self.ready = {key: ReadyRows() for key in self.shards.rows}
        for key, ready in self.ready.items():
            ready.add(parts_of(self.growing.staging, key))

    @property
    def finished(self) -> list[str]:
        return list(self.shards.rows)[: self.growing.manifest.num_shards]

    def stage(self, key: str, first: int, stop: int) -> None:
        (self.growing.staging / key).mkdir(parents=True, exist_ok=True)
        rows = self.shards.rows[key].slice(first, stop - first)
        if len(rows):
            self.ready[key].add(write_parts(self.growing.staging, key, rows))

    def pack(self, key: str) -> None:
        """Write down that the shard is packed to its end."""
        folder = self.growing.staging / key
        folder.mkdir(parents=True, exist_ok=True)
        if self.shards.num_set_aside[key]:
            (folder / SET_ASIDE).write_text(f"rows of {key}\n" * self.shards.num_set_aside[key])
        write_packed(self.growing.staging, key, self.shards.packed(key))

    def grow(self, is_all: bool = False) -> bool:
        return self.growing.grow(lambda key: self.ready[key].stop, is_all)

    def finish(self) -> Manifest:
        """Stage what is missing, and let the corpus grow to its end."""
        for key, rows in self.shards.rows.items():
            if key not in self.finished:
                self.stage(key, 0, len(rows))
                if read_packed(self.growing.staging, key) is None:
                    self.pack(key)
        self.grow(is_all=True)
        return self.growing.manifest


def contents(folder: Path) -> dict[str, bytes]:
    """What a corpus holds, by path: all but the manifest and what was staged."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for part in ("segments", "set_aside")
        for path in sorted((folder / part).glob("*"))
        if not path.name.startswith(".")
    }


def made(folder: Path, shards: Shards, rows_per_segment: int) -> tuple[Manifest, dict[str, bytes]]:
    """The corpus that is made in one go."""
    manifest = Ingest(folder, shards, rows_per_segment).finish()
    return manifest, contents(folder)
