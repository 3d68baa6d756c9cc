"""Places: a path or URL as a file or folder of a filesystem, here or in an object store."""

import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from replay_service.corpus.shards.answers import behind, reason_of, says_missing
from replay_service.corpus.shards.urls import OBJECT_URL, is_url, printable, secrets_in, without_secrets
from replay_service.errors import ReplayError, SourceForbidden, UnusableSource

_BUFFER_BYTES = 4 << 20
"""Read ahead of a stream: an object store answers a request in tens of milliseconds, however little is asked for."""

_IDENTITY = ("blob_id", "etag", "ETag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")
"""Names, among the filesystems of fsspec, of the information that changes when a file changes."""

_CONTENT_HASHES = ("blob_id", "etag", "ETag", "md5")
"""The names among them whose values are hashes of the content."""

_CHUNK_BYTES = 256 << 10

_FAILURES = (OSError, EOFError, ValueError, pa.ArrowException, tarfile.TarError)
"""Errors of pyarrow and the standard library that reading a file may raise."""

CheckPath = Callable[[str], None]


class Found(NamedTuple):
    """A file below a folder: its path from there, and what changes when it is another file."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Place:
    """A path within a filesystem: of a file, of a folder or of nothing."""

    filesystem: fs.FileSystem
    path: str

    @property
    def name(self) -> str:
        """The last part of the path; where a path is itself a URL, without its query."""
        return PurePosixPath(printable(self.path)).name

    def version(self) -> str | None:
        """The version of the file that stands here; None when there is no file."""
        info = self.filesystem.get_file_info(self.path)
        return _version(info.size, info.mtime_ns) if info.type == fs.FileType.File else None

    def fingerprint(self) -> str:
        """Equal for files of one content, whatever they are called and whenever they were written.

        The size, and a hash of the first, the middle and the last 256 KiB.
        """
        digest = hashlib.sha256()
        with self.open_file() as content:
            size = content.size()
            for first in (0, (size - _CHUNK_BYTES) // 2, size - _CHUNK_BYTES):
                content.seek(max(0, first))
                digest.update(content.read(_CHUNK_BYTES))
        return f"{size}-{digest.hexdigest()[:16]}"

    def is_folder(self) -> bool:
        return bool(self.filesystem.get_file_info(self.path).type == fs.FileType.Directory)

    def files(self, recursive: bool) -> Iterator[Found]:
        """The files of the folder that stands here, in no order."""
        for info in self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=recursive)):
            if info.type == fs.FileType.File:
                yield Found(_below(self.path, info.path), _version(info.size, info.mtime_ns))

    def open_stream(self) -> pa.NativeFile:
        """The content from front to back, as it is."""
        return self.filesystem.open_input_stream(self.path, compression=None, buffer_size=_BUFFER_BYTES)

    def open_file(self) -> pa.NativeFile:
        """The content, to read at any position."""
        return self.filesystem.open_input_file(self.path)


@dataclass(frozen=True, slots=True)
class LocalPlace(Place):
    """A path on this machine. Links are followed, except those that form a circle.

    Attributes:
        check: raises SourceForbidden for a path that may not be read; called with each folder, links resolved.
    """

    check: CheckPath

    def files(self, recursive: bool) -> Iterator[Found]:
        yield from _local_files(self.path, "", recursive, frozenset(), self.check)


class FsspecPlace(Place):
    """A path within a filesystem of fsspec, whose own information tells more than pyarrow's view of it."""

    __slots__ = ()

    def version(self) -> str | None:
        info = self._info()
        return _fsspec_version(info) if info is not None and info["type"] == "file" else None

    def is_folder(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "directory"

    def files(self, recursive: bool) -> Iterator[Found]:
        found = self._fsspec().find(self.path, maxdepth=None if recursive else 1, detail=True)
        for path, info in found.items():
            yield Found(_below(self.path, path), _fsspec_version(info))

    def fingerprint(self) -> str:
        info = self._fsspec().info(self.path)
        found = next((info[name] for name in _CONTENT_HASHES if info.get(name)), None)
        try:
            return Place.fingerprint(self) if found is None else f"{info['size']}-{found}"
        except (OSError, ValueError):  # some servers give no parts of a file
            return _fsspec_version(info)

    def open_stream(self) -> pa.NativeFile:
        with self._answer_told():
            return Place.open_stream(self)

    def open_file(self) -> pa.NativeFile:
        with self._answer_told():
            return Place.open_file(self)

    @contextmanager
    def _answer_told(self) -> Iterator[None]:
        """Raise the error that the server gave, which pyarrow turns into a FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            self._info()
            raise

    def _info(self) -> Mapping[str, Any] | None:
        """What the filesystem knows of the path; None when there is nothing."""
        try:
            info: Mapping[str, Any] = self._fsspec().info(self.path)
        except FileNotFoundError as error:
            if isinstance(error.__cause__, ReplayError) or not says_missing(behind(error)):
                raise
            return None
        return info

    def _fsspec(self) -> Any:
        return self.filesystem.handler.fs


def locate(url: str, check: CheckPath | None = None) -> Place:
    """The place that a normal path or URL names; nothing is asked of it but, for a bucket, its region.

    Args:
        check: where links and redirects must not lead anywhere else: what to check local folders by.

    Raises:
        UnusableSource: when no filesystem is known for the URL, or the package for it is missing.
    """
    if not is_url(url):
        return LocalPlace(fs.LocalFileSystem(), url, check or _any_path)
    parts = OBJECT_URL.fullmatch(url)
    return _fsspec_place(url, follows_redirects=check is None) if parts is None else _object_place(url, parts)


@contextmanager
def failures_named(url: str, what: str = "") -> Iterator[None]:
    """Turn an error of a place into an UnusableSource that names `what` it is and its URL without secrets."""
    foreign = is_url(url) and OBJECT_URL.fullmatch(url) is None
    try:
        yield
    except ReplayError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, ReplayError):  # fsspec takes a refused redirect for a missing file
            raise error.__cause__ from None
        # The filesystems of fsspec raise what the libraries below them raise.
        if not (foreign or isinstance(error, _FAILURES)):
            raise
        advice = "see to the address, the access to it and its content" if is_url(url) else "mend it or take it out"
        reason = without_secrets(reason_of(behind(error)), url)
        message = f"{what}{printable(url)} cannot be read: {reason}; {advice}"
        raise UnusableSource(message) from (None if secrets_in(url) else error)


def _object_place(url: str, parts: re.Match[str]) -> Place:
    path = parts["path"].rstrip("/")
    bucket = path.split("/")[0]
    if not bucket:
        raise UnusableSource(f"{printable(url)} names no bucket")
    if "//" in path:
        raise UnusableSource(f"{printable(url)} cannot be read: its key has an empty part (//); copy it to another key")
    user = quote(parts["user"] or "", safe="%:@")
    try:
        filesystem, _ = fs.FileSystem.from_uri(f"{parts['scheme']}://{user}{bucket}{parts['query'] or ''}")
    except (ImportError, pa.ArrowNotImplementedError) as error:
        raise UnusableSource(
            f"{printable(url)} cannot be read: this pyarrow was built without {parts['scheme']}://; "
            "install the wheel: pip install pyarrow"
        ) from error
    return Place(filesystem, path)


def _any_path(_: str) -> None:
    pass


def _fsspec_place(url: str, follows_redirects: bool = True) -> FsspecPlace:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise UnusableSource(f"{printable(url)} needs a package that is missing: pip install fsspec") from error
    try:
        is_http = url.startswith(("http://", "https://"))
        filesystem, path = url_to_fs(url, **({} if follows_redirects or not is_http else _NO_REDIRECTS))
    except ImportError as error:
        reason = without_secrets(str(error), url)
        raise UnusableSource(f"{printable(url)} needs a package that is missing: {reason}") from None
    return FsspecPlace(fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path)


async def _refuse_redirect(response: Any) -> None:
    if 300 <= response.status < 400 and "location" in response.headers:
        raise SourceForbidden(
            f"{printable(str(response.url))} redirects to another address, which an ingest that a service starts does "
            "not follow; name the address that it redirects to, in ingest_from and as the source"
        )


_NO_REDIRECTS = {"allow_redirects": False, "client_kwargs": {"raise_for_status": _refuse_redirect}}
"""Options of fsspec's filesystem for HTTP, and of aiohttp's session below it."""


def _local_files(folder: str, prefix: str, recursive: bool, above: frozenset[str], check: CheckPath) -> Iterator[Found]:
    real = os.path.realpath(folder)
    if real in above:
        return
    check(real)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if recursive:
                    yield from _local_files(entry.path, f"{prefix}{entry.name}/", recursive, above | {real}, check)
            elif entry.is_file():
                status = entry.stat()
                yield Found(prefix + entry.name, _version(status.st_size, status.st_mtime_ns))
            elif entry.is_symlink():
                yield Found(prefix + entry.name, "")  # a link to nothing shows when it is read


def _below(folder: str, path: str) -> str:
    return path.removeprefix(folder.rstrip("/")).removeprefix("/")


def _version(size: int | None, mtime_ns: int | None) -> str:
    return f"{size}-{mtime_ns}"


def _fsspec_version(info: Mapping[str, Any]) -> str:
    return "-".join(str(info[name]) for name in ("size", *_IDENTITY) if info.get(name) is not None)
