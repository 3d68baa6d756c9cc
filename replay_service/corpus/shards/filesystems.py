"""Places: a path or URL as a file or folder of a filesystem. What is secret in a URL stays out of every message."""

import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs

from replay_service.corpus.shards.answers import behind, reason_of, says_missing
from replay_service.errors import ReplayError, SourceForbidden, UnusableSource

_BUFFER_BYTES = 4 << 20
"""Read ahead of a stream: an object store answers a request in tens of milliseconds, however little is asked for."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://")
_OBJECT_URL = re.compile(
    r"(?P<scheme>s3|gs|gcs)://(?P<user>[^/@:]*:[^@]*@|[^/@]*@)?(?P<path>.*?)(?P<query>\?[\w.-]+=[^?]*)?", re.DOTALL
)
"""A URL for pyarrow's own filesystems. An access key may hold a slash, and a query stands at the very end."""

_USER = re.compile(r"//(?:[^/@:]*:[^@]*@(?:[^/@]*@)*|[^/@]*@)")
_QUERY = re.compile(r"\?[\w.-]+=.*$", re.DOTALL)
_HARMLESS = ("region", "scheme", "endpoint_override")
_IDENTITY = ("blob_id", "etag", "ETag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")
"""What the filesystems of fsspec call that which changes with a file."""

_CONTENT_HASHES = ("blob_id", "etag", "ETag", "md5")
"""Those of them that follow from the content."""

_CHUNK_BYTES = 256 << 10

_FAILURES = (OSError, EOFError, ValueError, pa.ArrowException, tarfile.TarError)


CheckPath = Callable[[str], None]


class SplitUrl(NamedTuple):
    """A URL: its scheme, user and password with their `@`, host or bucket and path, and query with its `?`."""

    scheme: str
    user: str
    path: str
    query: str


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
    """A path on this machine. Links are followed, but for those that lead round in a circle.

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
        """Let what a server answers be raised in place of the FileNotFoundError that pyarrow makes of it."""
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


def is_url(source: str) -> bool:
    return _SCHEME.match(source) is not None


def normal(source: str | Path) -> str:
    """The absolute path of what is local, a URL as it is."""
    text = str(source).removeprefix("file://")
    return text if is_url(text) else str(Path(os.path.abspath(text)))  # noqa: PTH100 (`resolve` follows links)


def resolved(url: str) -> str:
    """The same for every way to a place: a normal path without links, a URL without secrets."""
    if not is_url(url):
        return os.path.realpath(url)
    server = re.search(r"[?&](endpoint_override=[^&]*)", url)
    return printable(url) + (f"?{server[1]}" if server else "")


def split_url(url: str) -> SplitUrl:
    """The parts of a URL; `scheme://` + user + path + query is the URL again."""
    parts = _OBJECT_URL.fullmatch(url)
    if parts is not None:
        return SplitUrl(parts["scheme"], parts["user"] or "", parts["path"], parts["query"] or "")
    scheme, _, rest = url.partition("://")
    path, mark, query = rest.partition("?") if scheme in ("http", "https") else (rest, "", "")
    host, slash, below = path.partition("/")
    user, at, host = host.rpartition("@")
    return SplitUrl(scheme, user + at, host + slash + below, mark + query)


def locate(url: str, check: CheckPath | None = None) -> Place:
    """The place that a normal path or URL names; nothing is asked of it but, for a bucket, its region.

    Args:
        check: where links and redirects must not lead anywhere else: what to check local folders by.

    Raises:
        UnusableSource: when no filesystem is known for the URL, or the package for it is missing.
    """
    if not is_url(url):
        return LocalPlace(fs.LocalFileSystem(), url, check or _any_path)
    parts = _OBJECT_URL.fullmatch(url)
    return _fsspec_place(url, follows_redirects=check is None) if parts is None else _object_place(url, parts)


def child_url(url: str, name: str) -> str:
    """The path or URL of `name` below the folder `url`."""
    stem, query = _split_query(url)
    return f"{stem.rstrip('/')}/{name}{query}"


def folder_url(url: str, tail: str) -> str:
    """The path or URL of the folder that has `tail` below it at `url`."""
    stem, query = _split_query(url)
    return stem.rstrip("/").removesuffix(tail) + query


def printable(source: str | Path) -> str:
    """The form of a path or URL that messages and logs may hold: no user, no password, no query."""
    text = str(source)
    return _QUERY.sub("", _USER.sub("//", text)) if is_url(text) else text


@contextmanager
def failures_named(url: str, what: str = "") -> Iterator[None]:
    """Turn what goes wrong with a place into an UnusableSource that names `what` it is, without its secrets."""
    foreign = is_url(url) and _OBJECT_URL.fullmatch(url) is None
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
        reason = _without_secrets(reason_of(behind(error)), url)
        message = f"{what}{printable(url)} cannot be read: {reason}; {advice}"
        raise UnusableSource(message) from (None if _secrets(url) else error)


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
        reason = _without_secrets(str(error), url)
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


def _split_query(url: str) -> tuple[str, str]:
    parts = _OBJECT_URL.fullmatch(url)
    query = (parts["query"] or "") if parts else ""
    return url.removesuffix(query), query


def _version(size: int | None, mtime_ns: int | None) -> str:
    return f"{size}-{mtime_ns}"


def _fsspec_version(info: Mapping[str, Any]) -> str:
    return "-".join(str(info[name]) for name in ("size", *_IDENTITY) if info.get(name) is not None)


def _secrets(url: str) -> list[str]:
    """What in the URL is nobody else's business, as written and as decoded, the longest first."""
    if not is_url(url):
        return []
    user, query = _USER.search(url), _QUERY.search(url)
    words = re.split("[:@]", user[0][2:]) if user else []
    for pair in query[0][1:].split("&") if query else []:
        name, _, value = pair.partition("=")
        words += [] if name in _HARMLESS else [value]
    forms = {form for word in words for form in (word, unquote(word), quote(word, safe=""), quote(word, safe="%"))}
    return sorted(forms - {""}, key=len, reverse=True)


def _without_secrets(message: str, url: str) -> str:
    message = message.replace(url, printable(url))
    for secret in _secrets(url):
        message = message.replace(secret, "***")
    return message
