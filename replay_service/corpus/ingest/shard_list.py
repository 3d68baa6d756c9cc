"""The shards of a corpus, in the order in which their rows stand in it."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from replay_service.corpus.ingest.settings import digest
from replay_service.corpus.shards.listing import num_bytes_of
from replay_service.corpus.shards.sources import Shard, fingerprint_of
from replay_service.errors import CorpusError

SHARD_LIST_NAME = "shards.jsonl"
_LOOKS_AT_ONCE = 8


class ListedShard(NamedTuple):
    """A shard that is part of a corpus.

    Attributes:
        name: its path below the source that it was ingested from.
        version: what its filesystem says of the file: its size, and what changes when it is written.
        place: where it stands, by whatever way; empty in lists of early releases.
        fingerprint: of its content; empty in lists of early releases.
    """

    name: str
    version: str
    place: str = ""
    fingerprint: str = ""

    @property
    def key(self) -> str:
        return digest(self.name, self.fingerprint or self.version)


def listed(shard: Shard) -> ListedShard:
    """The shard as it is now; reads some of its content, and raises UnusableSource when that cannot be done."""
    return ListedShard(shard.name, shard.version, shard.place, fingerprint_of(shard))


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
        file.writelines(json.dumps(_as_dict(each)) + "\n" for each in shards)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / SHARD_LIST_NAME)


def _as_dict(shard: ListedShard) -> dict[str, str]:
    fields = shard._asdict()
    return fields if shard.fingerprint else {name: fields[name] for name in ("name", "version")}


class Pending(NamedTuple):
    """A shard that is to be read: as it stands in the list, and where it is found."""

    listed: ListedShard
    shard: Shard


def in_order(done: Sequence[ListedShard], is_half_done: bool, found: Sequence[Shard]) -> list[Pending]:
    """The found shards that are to be read still, in the order to read them in.

    A shard is known by its place, or by its name and content: so it is not read again when it is found by another way,
    was moved, or was only touched. A shard of another place and other content is another one, whatever its name. Those
    of early releases, which kept neither place nor content, are known by name and size.

    New shards come in an order that has nothing to do with their names: so the first generations, which are rehearsed
    from while the others are made, hold something of everything.

    Args:
        done: those of which rows stand in the corpus.
        is_half_done: whether rows of the last of them are missing.
        found: what is in the source now.

    Raises:
        CorpusError: when one that is done has changed, or when the half-done one is gone.
        UnusableSource: when one whose content must be looked at cannot be read.
    """
    known = _Known(done)
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as looks:
        pairs = list(zip(looks.map(known.listed, found), found, strict=True))
    new = sorted((Pending(*pair) for pair in pairs if pair[0] not in known), key=lambda each: digest(each.listed.name))
    if not is_half_done:
        return new
    half_done = [Pending(*pair) for pair in pairs if pair[0] == done[-1]]
    if not half_done:
        raise CorpusError(f"shard {done[-1].name} is ingested by half and is gone; bring it back")
    return [half_done[0], *new]


class _Known:
    """The shards of a corpus, by what each is known by."""

    def __init__(self, done: Sequence[ListedShard]) -> None:
        self._all = set(done)
        self._by_place = {each.place: each for each in done if each.place}
        self._by_key = {each.key: each for each in done}
        self._by_name = {each.name: each for each in done if not each.place}

    def __contains__(self, shard: ListedShard) -> bool:
        return shard in self._all

    def listed(self, shard: Shard) -> ListedShard:
        """As the shard stands in the list, or as it is to stand there if it is new."""
        before = self._by_place.get(shard.place)
        if before is not None and before.version == shard.version:
            return before
        if before is None and shard.name in self._by_name:
            return _of_early_release(self._by_name[shard.name], shard)
        now = listed(shard)
        if before is None:
            return self._by_key.get(now.key, now)
        if before.fingerprint != now.fingerprint:
            raise CorpusError(
                f"shard {shard.name} has changed since it was ingested: {shard.place} had the fingerprint "
                f"{before.fingerprint} (size, hash of the content) then, and has {now.fingerprint} now; a corpus only "
                "grows: give what is new a name of its own, or make another corpus"
            )
        return before


def _of_early_release(before: ListedShard, shard: Shard) -> ListedShard:
    if before.version != shard.version and num_bytes_of(before.version) != shard.num_bytes:
        raise CorpusError(
            f"shard {shard.name} has changed since it was ingested: one of this name had "
            f"{num_bytes_of(before.version):,} bytes then, and it has {shard.num_bytes:,} now; a corpus only grows: "
            "give what is new a name of its own, or make another corpus"
        )
    return before
