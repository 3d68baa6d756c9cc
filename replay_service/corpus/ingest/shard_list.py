"""The shards of a corpus, in the order in which their rows stand in it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from replay_service.corpus.ingest.settings import digest
from replay_service.corpus.shards.sources import Shard
from replay_service.errors import CorpusError

SHARD_LIST_NAME = "shards.jsonl"


class ListedShard(NamedTuple):
    """A shard that is part of a corpus: its name below the source, and what tells it from another file of that name."""

    name: str
    version: str

    @property
    def key(self) -> str:
        return digest(self.name, self.version)


def listed(shard: Shard) -> ListedShard:
    return ListedShard(shard.name, shard.version)


def read_shard_list(folder: Path) -> list[ListedShard]:
    """The shards in the order of the corpus in `folder`; empty when it has none yet."""
    try:
        lines = (folder / SHARD_LIST_NAME).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [ListedShard(**json.loads(line)) for line in lines]


def write_shard_list(folder: Path, shards: Sequence[ListedShard]) -> None:
    """Replace the list, so that a crash leaves the old one or the new one."""
    temporary = folder / f".{SHARD_LIST_NAME}.{os.getpid()}"
    with temporary.open("w") as file:
        file.writelines(json.dumps(each._asdict()) + "\n" for each in shards)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / SHARD_LIST_NAME)


def in_order(done: Sequence[ListedShard], is_half_done: bool, found: Sequence[Shard]) -> list[Shard]:
    """The found shards that are to be read still, in the order to read them in.

    New shards come in an order that has nothing to do with their names: so the first generations, which are rehearsed
    from while the others are made, hold something of everything.

    Args:
        done: those of which rows stand in the corpus.
        is_half_done: whether rows of the last of them are missing.
        found: what is in the source now.

    Raises:
        CorpusError: when one that is done has changed, or when the half-done one is gone.
    """
    versions = {each.name: each.version for each in done}
    for shard in found:
        if versions.get(shard.name, shard.version) != shard.version:
            raise CorpusError(
                f"shard {shard.name} has changed since it was ingested, and a corpus only grows; give what is new a "
                "name of its own, or make another corpus"
            )
    new = sorted((shard for shard in found if shard.name not in versions), key=lambda each: digest(each.name))
    if not is_half_done:
        return new
    half_done = [shard for shard in found if shard.name == done[-1].name]
    if not half_done:
        raise CorpusError(f"shard {done[-1].name} is ingested by half and is gone; bring it back")
    return [*half_done, *new]
