"""Folders of corpora, on a disk of this machine or in object storage: to a reader, the same."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

from pyarrow import fs

from replay_service.corpus.format.layout import Layout
from replay_service.corpus.format.manifest import MANIFEST_NAME, Manifest, no_corpus, parse_manifest, read_manifest
from replay_service.corpus.format.texts import TOKENIZER_FILE
from replay_service.corpus.reading.blocks import Blocks
from replay_service.corpus.reading.local_blocks import LocalBlocks
from replay_service.corpus.reading.object_storage import ObjectStorage, RetryPolicy, open_filesystem
from replay_service.corpus.reading.remote_blocks import Fetcher, RemoteBlocks
from replay_service.errors import CorpusUnavailable

DEFAULT_CACHE_BYTES = 1 << 30


class Folder(Protocol):
    """A corpus, or a folder of corpora, one subfolder each.

    Methods raise UnknownCorpus when a manifest is not there, CorpusError when it is damaged, and CorpusUnavailable
    when storage does not answer.
    """

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network, so that it pays to read ahead."""
        ...

    def check(self) -> None:
        """Raises CorpusUnavailable when the folder is not there, or storage does not answer."""
        ...

    def child(self, name: str) -> Self: ...

    def corpora(self) -> list[str]:
        """The names of the subfolders that have a manifest."""
        ...

    def version(self) -> object | None:
        """A value that changes when the manifest does; None when only its content tells."""
        ...

    def manifest(self) -> Manifest: ...

    def tokenizer(self) -> bytes | None:
        """The rules of the corpus's tokenizer; None when they are not there."""
        ...

    def blocks(self, layout: Layout, earlier: Blocks | None = None) -> Blocks:
        """The blocks of a corpus; `earlier` are those of an earlier generation in the same folder."""
        ...

    def close(self) -> None:
        """Stop what goes on in the background."""
        ...


class LocalFolder:
    """A folder on a disk of this machine; `monotonic` is a clock, seconds."""

    is_remote = False

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._monotonic = monotonic

    def check(self) -> None:
        try:
            os.scandir(self._path).close()
        except OSError as error:
            raise CorpusUnavailable(f"the folder of the corpora cannot be read: {error.strerror}") from error

    def child(self, name: str) -> "LocalFolder":
        return LocalFolder(self._path / name, self._monotonic)

    def corpora(self) -> list[str]:
        return [path.parent.name for path in self._path.glob(f"*/{MANIFEST_NAME}")]

    def version(self) -> tuple[int, int, int]:
        try:
            status = (self._path / MANIFEST_NAME).stat()
        except (FileNotFoundError, NotADirectoryError):
            raise no_corpus(self._path.name) from None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def manifest(self) -> Manifest:
        return read_manifest(self._path)

    def tokenizer(self) -> bytes | None:
        path = self._path / TOKENIZER_FILE
        return path.read_bytes() if path.is_file() else None

    def blocks(self, layout: Layout, earlier: Blocks | None = None) -> LocalBlocks:
        mine = earlier if isinstance(earlier, LocalBlocks) else None
        return LocalBlocks(self._path, layout, mine, self._monotonic)

    def close(self) -> None:
        """There is nothing in the background."""


class RemoteFolder:
    """A folder in object storage."""

    is_remote = True

    def __init__(self, fetcher: Fetcher, path: str) -> None:
        self._fetcher = fetcher
        self._path = path.rstrip("/")

    def check(self) -> None:
        self._fetcher.storage.are_files([f"{self._path}/{MANIFEST_NAME}"])

    def child(self, name: str) -> "RemoteFolder":
        return RemoteFolder(self._fetcher, f"{self._path}/{name}" if self._path else name)

    def corpora(self) -> list[str]:
        names = self._fetcher.storage.folders(self._path)
        there = self._fetcher.storage.are_files([self.child(name)._manifest_path for name in names])
        return [name for name, is_there in zip(names, there, strict=True) if is_there]

    def version(self) -> tuple[int, int] | None:
        try:
            return self._fetcher.storage.version(self._manifest_path)
        except FileNotFoundError:
            raise self._no_corpus() from None

    def manifest(self) -> Manifest:
        try:
            return parse_manifest(self._fetcher.storage.read(self._manifest_path), self._manifest_path)
        except FileNotFoundError:
            raise self._no_corpus() from None

    def tokenizer(self) -> bytes | None:
        try:
            return self._fetcher.storage.read(f"{self._path}/{TOKENIZER_FILE}")
        except FileNotFoundError:
            return None

    def blocks(self, layout: Layout, earlier: Blocks | None = None) -> RemoteBlocks:
        return RemoteBlocks(self._fetcher, self._path, layout, earlier if isinstance(earlier, RemoteBlocks) else None)

    def close(self) -> None:
        self._fetcher.close()

    @property
    def _manifest_path(self) -> str:
        return f"{self._path}/{MANIFEST_NAME}"

    def _no_corpus(self) -> Exception:
        return no_corpus(self._path.rpartition("/")[2])


def open_folder(place: str | Path, cache_bytes: int = DEFAULT_CACHE_BYTES) -> Folder:
    """The folder at a path or a URL; raises CorpusError when the URL cannot be used."""
    if isinstance(place, Path) or "://" not in place:
        return LocalFolder(Path(place))
    filesystem, path = open_filesystem(place)
    if isinstance(filesystem, fs.LocalFileSystem):
        return LocalFolder(Path(path))
    return remote_folder(filesystem, path, cache_bytes)


def remote_folder(
    filesystem: fs.FileSystem,
    path: str,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (it is frozen)
) -> RemoteFolder:
    """The folder at a path of a filesystem, which is taken to be far away."""
    return RemoteFolder(Fetcher(ObjectStorage(filesystem, retry), cache_bytes), path)
