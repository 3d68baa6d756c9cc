"""Listing: which files of a source are shards. Every other file is passed over, and named.

A file is a shard if the ending of its name says so. In a folder, and below it:

- what begins with a dot or an underscore is no part of the data, nor what is in such a folder; but `_name=value`, which
  stands for a column, is a folder as any other;
- where there are tables, JSON lines or archives, here or below, `.txt`, `.md` and `.json` files describe them;
- `README.md`, `LICENSE.txt` and the like describe the source that they stand in, and are no data where nothing else is;
- of a data set that Hugging Face's libraries saved, the shards are what its `state.json` lists.

A glob, or the path of a file, takes what it names, whatever stands beside it.
"""

import fnmatch
import json
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from replay_service.corpus.shards.compression import ARCHIVE_SUFFIXES, SUFFIXES
from replay_service.corpus.shards.filesystems import Found, Place, failures_named
from replay_service.corpus.shards.places import AllowedPlaces, locate_within
from replay_service.corpus.shards.urls import child_url, folder_url, is_url, normal, printable, resolved, split_url
from replay_service.errors import UnusableSource

_LINES, _TEXTS, _TARS = (".jsonl", ".ndjson", ".json"), (".txt", ".md"), (".tar",)
_COMPRESSED = ("", *SUFFIXES)
_KINDS = {
    ".parquet": "parquet",
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
    **dict.fromkeys((ending + how for ending in _LINES for how in _COMPRESSED), "jsonl"),
    **dict.fromkeys((ending + how for ending in _TEXTS for how in _COMPRESSED), "text"),
    **dict.fromkeys((*(ending + how for ending in _TARS for how in _COMPRESSED), *ARCHIVE_SUFFIXES), "tar"),
}
_ENDINGS = (
    ".parquet, .arrow, .feather, .ipc, .jsonl, .ndjson, .json, .txt, .md, .tar; from .jsonl on also with "
    f"{', '.join(SUFFIXES)}"
)

_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""What Hugging Face's libraries lay beside their data."""

_DESCRIBING = (
    *("readme", "changelog", "citation", "code_of_conduct", "contributing", "contributors", "copying", "datasheet"),
    *("dataset_card", "licence", "license", "model_card", "requirements"),
)
"""Names, without endings and in small letters, of texts about what stands beside them."""

_SHARD_NUMBER = re.compile(r"[-_.]\d+([-_]of[-_]\d+)?$")
_WILDCARD = re.compile(r"[*?[]")
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file.

    Attributes:
        url: its absolute path, or its URL, which may hold secrets and is for that reason not in `repr`.
        kind: `parquet`, `jsonl`, `arrow`, `text` or `tar`.
        domain: the domain of its documents when no column tells: the first folder below the source, else the file's
            name without its shard number.
        name: its path from the source on, or the file's name if it is the source: the same on every machine.
        version: changes when the file is written: its size, and the time of its last change or what its filesystem has.
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
        return num_bytes_of(self.version)

    @property
    def place(self) -> str:
        """Where it stands, by whatever way it was found: its path without links, or its URL without secrets."""
        return resolved(self.url)


class Listing(NamedTuple):
    """What a source holds: its shards in name order, and the names of files that are none."""

    shards: list[Shard]
    passed_over: list[str]


def look_into(source: str | Path, allowed: AllowedPlaces | None = None) -> Listing:
    """The shards of a file, of a folder with all in it, or of the files that a glob matches.

    Raises:
        UnusableSource: when there is no such place, it cannot be looked into, or it holds nothing that can be read.
        SourceForbidden: when the source, or a shard that it leads to, lies in none of the allowed places.
    """
    url = normal(source)
    with failures_named(url):
        place = locate_within(url, allowed)
        if (version := place.version()) is not None:
            return Listing([_only_shard(url, place, version, allowed)], [])
        if place.is_folder():
            root, found = url, _visible(url, place, allowed, recursive=True)
            shards = _without_descriptions(found)
        elif _WILDCARD.search(split_url(url).path if is_url(url) else url):  # the query of a URL is no wildcard
            root, found = _matching(url, place, allowed)
            shards = [name for name in found if kind_of(name)]
        else:
            raise UnusableSource(f"there is no file or folder {printable(url)}")
    taken = _one_of_each_place([_shard(root, found[name], allowed) for name in sorted(shards)])
    passed_over = sorted(found.keys() - {shard.name for shard in taken})
    if not taken:
        raise UnusableSource(f"{printable(url)} holds no shard{_held(passed_over)}; shards end in {_ENDINGS}")
    return Listing(taken, passed_over)


def find_shards(source: str | Path, allowed: AllowedPlaces | None = None) -> list[Shard]:
    """The shards of `look_into`; raises what it raises."""
    return look_into(source, allowed).shards


def kind_of(name: str) -> str | None:
    """The kind of a shard by the ending of its name; None for a file of no known kind."""
    return next((kind for ending, kind in _KINDS.items() if name.lower().endswith(ending)), None)


def num_bytes_of(version: str) -> int:
    """The size that a version begins with; 0 where it has none."""
    size = version.partition("-")[0]
    return int(size) if size.isdecimal() else 0


def some_of(names: list[str]) -> str:
    """The first names of a list, and how many there are beside them."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


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


def _one_of_each_place(shards: Iterable[Shard]) -> list[Shard]:
    """Without links to a file that is among them already."""
    first = dict[str, Shard]()
    for shard in shards:
        first.setdefault(shard.place, shard)
    return list(first.values())


def _without_descriptions(found: Iterable[str]) -> list[str]:
    """The names of shards, without those that describe the data beside or below them."""
    shards = [name for name in found if kind_of(name)]
    data = [name for name in shards if not _may_describe(name)]
    folders = {folder for name in data for folder in PurePosixPath(name).parents}
    found = [name for name in shards if not _may_describe(name) or PurePosixPath(name).parent not in folders]
    found = [name for name in found if "/" in name or not _describes(name)]
    return [] if all(map(_describes, found)) else found


def _describes(name: str) -> bool:
    """Whether a file says by its name that it is about others."""
    return _may_describe(name) and posixpath.basename(name).split(".")[0].lower().replace("-", "_") in _DESCRIBING


def _held(passed_over: list[str]) -> str:
    """What a source without shards holds."""
    if not passed_over:
        return ""
    describing = any(map(_describes, passed_over))
    advice = ", of which a glob such as '*.md' takes what describes data" if describing else ""
    return f"; it holds {some_of(passed_over)}{advice}"


def _may_describe(name: str) -> bool:
    return kind_of(name) == "text" or name.lower().endswith(".json")


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
    """As Spark, Hive and pyarrow have it."""
    return any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in name.split("/"))


def _saved_data(url: str, name: str, allowed: AllowedPlaces | None) -> set[str]:
    """The data files of a folder that Hugging Face datasets saved, by its `state.json`."""
    path = child_url(url, name)
    with failures_named(path), locate_within(path, allowed).open_stream() as content:
        state = json.loads(content.read())
        try:
            return {posixpath.join(posixpath.dirname(name), each["filename"]) for each in state["_data_files"]}
        except (KeyError, TypeError) as error:
            raise ValueError("it lists no _data_files") from error


def _matching(url: str, place: Place, allowed: AllowedPlaces | None) -> tuple[str, dict[str, Found]]:
    """The folder before the first part of a path with a wildcard, and the files in it that the path matches."""
    parts = place.path.split("/")
    first = next(i for i, part in enumerate(parts) if _WILDCARD.search(part))
    glob = parts[first:]
    root = normal(folder_url(url, "/".join(glob)))
    folder = locate_within(root, allowed)
    if not folder.is_folder():
        raise UnusableSource(f"there is no folder {printable(root)}")
    found = _visible(root, folder, allowed, recursive=len(glob) > 1 or "**" in glob)
    return root, {name: each for name, each in found.items() if _matches(name.split("/"), glob)}


def _matches(parts: list[str], glob: list[str]) -> bool:
    """Whether a path matches, part by part; `**` stands for any number of folders."""
    if not glob:
        return not parts
    if glob[0] == "**":
        return any(_matches(parts[i:], glob[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], glob[0]) and _matches(parts[1:], glob[1:])
