"""Object storage: files behind URLs, read in ranges. A fault that may pass is tried again before it is an error."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import stamina
from pyarrow import fs

from replay_service.corpus.shards.filesystems import failures_named, locate
from replay_service.corpus.shards.urls import normal
from replay_service.errors import CorpusError, CorpusUnavailable, UnusableSource

T = TypeVar("T")


def open_filesystem(url: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a URL, and the path in it that the URL names.

    `s3` and `gs` are pyarrow's own, whose options stand in the query of the URL; others are fsspec's.

    Raises:
        CorpusError: when no filesystem is known for the URL, or a package for it is missing.
    """
    try:
        with failures_named(url):
            place = locate(normal(url))
    except UnusableSource as error:
        # A URL may hold a password, and the error below the URL.
        raise CorpusError(
            f"{error.detail} (corpora are in a folder of a bucket, as s3://bucket/corpora?region=us-east-1)"
        ) from None
    return place.filesystem, place.path


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to go on trying: waits double from `first_wait_s` to `longest_wait_s`, with jitter."""

    give_up_after_s: float = 15.0
    first_wait_s: float = 0.1
    longest_wait_s: float = 2.0


@dataclass(frozen=True, slots=True)
class ObjectStorage:
    """A filesystem that may fail for a while.

    Every method raises FileNotFoundError for what is not there, and CorpusUnavailable when there was no answer in
    time. Any other error counts as one that may pass: nobody can list those of all filesystems.
    """

    filesystem: fs.FileSystem
    retry: RetryPolicy = RetryPolicy()

    def read(self, path: str) -> bytes:
        """The whole of a small file."""
        return self.patiently(path, lambda: self._whole(path))

    def version(self, path: str) -> tuple[int, int] | None:
        """A value that changes when a file does; None when its filesystem does not tell. Not retried."""
        try:
            info = self.filesystem.get_file_info(path)
        except Exception as error:
            raise _unavailable(path, error) from error
        if info.type != fs.FileType.File:
            raise FileNotFoundError(path)
        return None if info.mtime_ns is None else (info.mtime_ns, info.size)

    def folders(self, path: str) -> list[str]:
        """The names of the folders in a folder, none if it is not there."""
        selector = fs.FileSelector(path, allow_not_found=True)
        found = self.patiently(path, lambda: self.filesystem.get_file_info(selector))
        return [info.base_name for info in found if info.type == fs.FileType.Directory]

    def are_files(self, paths: list[str]) -> list[bool]:
        found = self.patiently(", ".join(paths), lambda: self.filesystem.get_file_info(paths))
        return [info.type == fs.FileType.File for info in found]

    def patiently(self, path: str, ask: Callable[[], T]) -> T:
        """The answer to `ask`, which is asked again while it fails."""
        try:
            for attempt in stamina.retry_context(
                on=_may_pass,
                attempts=None,
                timeout=self.retry.give_up_after_s,
                wait_initial=self.retry.first_wait_s,
                wait_max=self.retry.longest_wait_s,
            ):
                with attempt:
                    return ask()
        except FileNotFoundError:
            raise
        except Exception as error:
            raise _unavailable(path, error) from error
        raise AssertionError("a retry loop ends with an answer or an error")

    def _whole(self, path: str) -> bytes:
        with self.filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read()
            return content


class RemoteFile:
    """One immutable file of object storage, read in ranges by any thread; opening it asks for nothing."""

    def __init__(self, storage: ObjectStorage, path: str) -> None:
        self._storage = storage
        self._path = path
        self._lock = threading.Lock()
        self._file: Any = None

    def read(self, start: int, num_bytes: int) -> bytes:
        """The bytes from `start` on, fewer if the file is shorter; one request, two the first time."""
        return self._storage.patiently(self._path, lambda: self._read(start, num_bytes))

    def _read(self, start: int, num_bytes: int) -> bytes:
        file = self._opened()
        there = max(0, min(num_bytes, file.size() - start))
        content: bytes = file.read_at(there, start) if there else b""
        return content

    def _opened(self) -> Any:
        with self._lock:
            if self._file is None:
                self._file = _open(self._storage.filesystem, self._path)
            return self._file


class _FsspecFile:
    """A file of fsspec, read without the buffers that its own file objects keep and fill far ahead."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem, self._path = filesystem, path
        self._size: int = filesystem.size(path)

    def size(self) -> int:
        return self._size

    def read_at(self, num_bytes: int, start: int) -> bytes:
        content: bytes = self._filesystem.cat_file(self._path, start=start, end=start + num_bytes)
        return content


class _SeekingFile:
    """A file of a filesystem in Python, which Arrow reads by a seek and a read: one thread after the other."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._lock = threading.Lock()

    def size(self) -> int:
        return int(self._file.size())

    def read_at(self, num_bytes: int, start: int) -> bytes:
        with self._lock:
            content: bytes = self._file.read_at(num_bytes, start)
            return content


def _open(filesystem: fs.FileSystem, path: str) -> Any:
    handler = getattr(filesystem, "handler", None)
    if isinstance(handler, fs.FSSpecHandler):
        return _FsspecFile(handler.fs, path)
    file = filesystem.open_input_file(path)
    return file if handler is None else _SeekingFile(file)


def _may_pass(error: Exception) -> bool:
    return not isinstance(error, FileNotFoundError)


def _unavailable(path: str, error: Exception) -> CorpusUnavailable:
    return CorpusUnavailable(
        f"{path} cannot be reached in object storage now: {error!r}; see to the storage, the network and the rights"
    )
