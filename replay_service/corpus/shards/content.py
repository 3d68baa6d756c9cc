"""The content of a file as one stream, decompressed, which tells how much of the file has been read."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from replay_service.corpus.shards.compression import compression_of, decompressed, num_expanded
from replay_service.corpus.shards.filesystems import Place


class _Counted(io.RawIOBase):
    """A stream that counts the bytes that are read; those of pyarrow do not tell where they are."""

    def __init__(self, content: Any) -> None:
        self._content = content
        self.num_read = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._content.read(size)
        self.num_read += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        num_bytes: int = self._content.readinto(buffer)
        self.num_read += num_bytes
        return num_bytes


class Content(_Counted):
    """The content of a file from front to back, decompressed.

    Args:
        file: as it is.
        compression: how it is compressed.
    """

    def __init__(self, file: Any, compression: str | None) -> None:
        self._file = _Counted(file)
        self._expanded = None if compression is None else decompressed(self._file, compression)
        self._position = 0
        super().__init__(self._file if self._expanded is None else self._expanded)

    def position(self, num_used: int | None = None) -> int:
        """How many bytes of the file the first `num_used` bytes of its content take, or all that have been read.

        Of compressed content it is an estimate, which never goes back.
        """
        position = self.num_read if num_used is None else num_used
        if self._expanded is not None:
            position = self._file.num_read * position // max(1, num_expanded(self._expanded))
        self._position = max(self._position, position)
        return self._position


@contextmanager
def content_of(place: Place) -> Iterator[Content]:
    """The content of the file at a place."""
    with place.open_stream() as file:
        yield Content(file, compression_of(place.name))
