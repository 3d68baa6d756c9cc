"""Sources: finding the shards in a file, a folder or a glob, here or behind a URL, and reading their documents."""

import fnmatch
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from replay_service.corpus.shards.documents import Columns, Document, Labelled, Row, SetAside, document_of
from replay_service.corpus.shards.filesystems import (
    Found,
    Place,
    child_url,
    failures_named,
    folder_url,
    is_url,
    normal,
    printable,
)
from replay_service.corpus.shards.places import AllowedPlaces, locate_within
from replay_service.corpus.shards.rows import check_head, read_rows
from replay_service.errors import UnusableSource

__all__ = [
    "Columns",
    "Document",
    "Labelled",
    "SetAside",
    "Shard",
    "check_readable",
    "find_shards",
    "is_url",
    "printable",
    "read_documents",
]

_LINES, _TEXTS = (".jsonl", ".ndjson", ".json"), (".txt", ".md")
_KINDS = {
    ".parquet": "parquet",
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
    **dict.fromkeys((ending + how for ending in _LINES for how in ("", ".gz", ".zst")), "jsonl"),
    **dict.fromkeys((ending + how for ending in _TEXTS for how in ("", ".gz", ".zst")), "text"),
    **dict.fromkeys((".tar", ".tar.gz", ".tgz"), "tar"),
}
_ENDINGS = ", ".join(ending for ending in _KINDS if ending.count(".") == 1) + ", some also .gz or .zst"

_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""What Hugging Face's libraries lay beside their data."""

_SHARD_NUMBER = re.compile(r"[-_.]\d+([-_]of[-_]\d+)?$")
_WILDCARD = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file.

    Attributes:
        url: its absolute path, or its URL, which may hold secrets and is for that reason not in `repr`.
        kind: `parquet`, `jsonl`, `arrow`, `text` or `tar`.
        domain: the domain of its documents when no column tells: the first folder below the source, else the file's
            name without its shard number.
        name: its path from the source on, or the file's name if it is the source: the same on every machine.
        version: changes when the file is another one: size and time of its last change, or what its filesystem has.
        allowed: the places that it may come from; None for any.
    """

    url: str = field(repr=False)
    kind: str
    domain: str
    name: str
    version: str
    allowed: AllowedPlaces | None = field(default=None, repr=False)

    @property
    def num_bytes(self) -> int:
        """The size of the file, with which its version begins; 0 where it is not known."""
        size = self.version.partition("-")[0]
        return int(size) if size.isdecimal() else 0


def find_shards(source: str | Path, allowed: AllowedPlaces | None = None) -> list[Shard]:
    """The shards of a file, of a folder with all in it, or of the files that a glob matches, in name order.

    Hidden files and folders are passed over. Of a folder that Hugging Face datasets saved, the shards are the files
    that its `state.json` lists.

    Raises:
        UnusableSource: when there is no such place, it cannot be looked into, or it holds nothing that can be read.
        SourceForbidden: when the source, or a shard that it leads to, lies in none of the allowed places.
    """
    url = normal(source)
    with failures_named(url):
        place = locate_within(url, allowed)
        if (version := place.version()) is not None:
            return [_only_shard(url, place, version, allowed)]
        if place.is_folder():
            root, found = url, list(_visible(url, place, allowed, recursive=True).values())
        elif _WILDCARD.search(place.path):
            root, found = _matching(url, place, allowed)
        else:
            raise UnusableSource(f"there is no file or folder {printable(url)}")
        shards = [_shard(root, each, allowed) for each in sorted(found) if kind_of(each.name)]
    if not shards:
        raise UnusableSource(f"{printable(url)} holds no shard: shards end in {_ENDINGS}")
    return shards


def kind_of(name: str) -> str | None:
    """The kind of a shard by the ending of its name; None for a file of no known kind."""
    return next((kind for ending, kind in _KINDS.items() if name.lower().endswith(ending)), None)


def check_readable(shard: Shard, columns: Columns) -> None:
    """Look at the head of a shard, so that what is plainly wrong shows before any work.

    Raises:
        UnusableSource: when it is missing or damaged, lacks a column, or holds nothing of its kind.
    """
    name = f"shard {printable(shard.url)}"
    with failures_named(shard.url, "shard "):
        check_head(shard.kind, locate_within(shard.url, shard.allowed), columns, name)


def read_documents(shard: Shard, columns: Columns) -> Iterator[Document | Labelled | SetAside]:
    """The documents of a shard, in order, and the rows that give none. A plain text is one document.

    Raises:
        UnusableSource: when the shard is missing or damaged, or lacks a column.
    """
    with failures_named(shard.url, "shard "):
        place = locate_within(shard.url, shard.allowed)
        for row in read_rows(shard.kind, place, columns, f"shard {printable(shard.url)}"):
            yield document_of(row, columns, shard.domain) if isinstance(row, Row) else row


def _only_shard(url: str, place: Place, version: str, allowed: AllowedPlaces | None) -> Shard:
    kind = kind_of(place.name)
    if kind is None:
        raise UnusableSource(f"{printable(url)} is no shard: shards end in {_ENDINGS}")
    return Shard(url, kind, _domain(place.name), place.name, version, allowed)


def _shard(root: str, found: Found, allowed: AllowedPlaces | None) -> Shard:
    url, kind = child_url(root, found.name), kind_of(found.name) or ""
    if allowed is not None:
        allowed.resolve(url)
    return Shard(url, kind, _domain(found.name), found.name, found.version, allowed)


def _domain(name: str) -> str:
    folder, _, rest = name.partition("/")
    return folder if rest else _SHARD_NUMBER.sub("", name.split(".")[0])


def _visible(url: str, place: Place, allowed: AllowedPlaces | None, recursive: bool) -> dict[str, Found]:
    """The files of a folder by name, without hidden ones and without what describes a data set."""
    found = {each.name: each for each in place.files(recursive) if not _is_hidden(each.name)}
    for name in [name for name in found if posixpath.basename(name) == "state.json"]:
        folder = posixpath.dirname(name)
        if posixpath.join(folder, "dataset_info.json") in found:
            data = _saved_data(url, name, allowed)
            found = {each: found[each] for each in found if posixpath.dirname(each) != folder or each in data}
            if missing := data - found.keys():
                raise UnusableSource(f"{printable(child_url(url, name))} lists {min(missing)}, which is not there")
    card = "README.md" if url.startswith("hf://") else ""
    return {name: each for name, each in found.items() if posixpath.basename(name) not in (*_METADATA, card)}


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _saved_data(url: str, name: str, allowed: AllowedPlaces | None) -> set[str]:
    """The data files of a folder that Hugging Face datasets saved, by its `state.json`."""
    path = child_url(url, name)
    with failures_named(path), locate_within(path, allowed).open_stream() as content:
        state = json.loads(content.read())
        try:
            return {posixpath.join(posixpath.dirname(name), each["filename"]) for each in state["_data_files"]}
        except (KeyError, TypeError) as error:
            raise ValueError("it lists no _data_files") from error


def _matching(url: str, place: Place, allowed: AllowedPlaces | None) -> tuple[str, list[Found]]:
    """The folder before the first part of a path with a wildcard, and the files in it that the path matches."""
    parts = place.path.split("/")
    first = next(i for i, part in enumerate(parts) if _WILDCARD.search(part))
    glob = parts[first:]
    root = normal(folder_url(url, "/".join(glob)))
    folder = locate_within(root, allowed)
    if not folder.is_folder():
        raise UnusableSource(f"there is no folder {printable(root)}")
    found = _visible(root, folder, allowed, recursive=len(glob) > 1 or "**" in glob)
    return root, [each for name, each in found.items() if _matches(name.split("/"), glob)]


def _matches(parts: list[str], glob: list[str]) -> bool:
    """Whether a path matches, part by part; `**` stands for any number of folders."""
    if not glob:
        return not parts
    if glob[0] == "**":
        return any(_matches(parts[i:], glob[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], glob[0]) and _matches(parts[1:], glob[1:])
