"""Compressed files: gzip, zstd, bzip2 and xz as streams of what they hold, one member after the other."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, Final, cast

import zstandard

_PIECE_BYTES: Final = 8 << 10
"""Compressed bytes that are expanded at once; few, since 4 bytes of zstd can stand for 128 KiB."""

_MOST_BYTES: Final = 4 << 20
"""The most that bzip2 and xz expand at once: their ratio has hardly a bound."""

_MOST_WINDOW_BYTES: Final = 1 << 31
"""What `zstd --long=31` asks for; the memory is used only as far as the content reaches."""

_DECOMPRESSORS: Final[dict[str, Callable[[], Any]]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES).decompressobj(),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ),
}
SUFFIXES: Final = tuple(_DECOMPRESSORS)
"""Endings of the names of compressed files."""

_OF_ARCHIVES: Final = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz", ".tzst": ".zst"}
ARCHIVE_SUFFIXES: Final = tuple(_OF_ARCHIVES)
"""Short endings of the names of compressed tar archives."""


def compression_of(name: str) -> str | None:
    """The ending that tells how the file of this name is compressed; None if it is not."""
    suffix = PurePosixPath(name).suffix.lower()
    suffix = _OF_ARCHIVES.get(suffix, suffix)
    return suffix if suffix in _DECOMPRESSORS else None


def num_expanded(content: io.BufferedReader) -> int:
    """How many bytes `decompressed` has made so far, those that were not read yet among them."""
    return cast(_Pieces, content.raw).num_bytes


def decompressed(source: io.RawIOBase, compression: str) -> io.BufferedReader:
    """The content of a compressed stream, with `compression` as `compression_of` gives it.

    Members that follow one another are read as one content. Zeros after the last one are padding, as tapes and block
    devices leave it.

    Raises:
        OSError: while reading, when the content is damaged, or something else follows it.
        EOFError: while reading, when it breaks off.
    """
    return io.BufferedReader(cast(io.RawIOBase, _Pieces(_members(source, compression))), _PIECE_BYTES)


class _Pieces(io.RawIOBase):
    """An iterator of pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._piece = memoryview(piece)
            self.num_bytes += len(piece)
        num_bytes = min(len(buffer), len(self._piece))
        buffer[:num_bytes] = self._piece[:num_bytes]
        self._piece = self._piece[num_bytes:]
        return num_bytes


def _members(source: io.RawIOBase, compression: str) -> Iterator[bytes]:
    num_members, given = 0, source.read(_PIECE_BYTES)
    while given or not num_members:
        decompressor = _DECOMPRESSORS[compression]()
        while not decompressor.eof:
            if not given:
                raise EOFError(f"the {compression[1:]} content breaks off")
            try:
                yield from _expanded(decompressor, given)
            except (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
                after = f" after {num_members} sound members" if num_members else ""
                raise OSError(f"the {compression[1:]} content is damaged{after}: {error}") from error
            given = b"" if decompressor.eof else source.read(_PIECE_BYTES)
        num_members, given = num_members + 1, _without_padding(decompressor.unused_data, source)


def _expanded(decompressor: Any, given: bytes) -> Iterator[bytes]:
    if not hasattr(decompressor, "needs_input"):
        yield decompressor.decompress(given)
        return
    yield decompressor.decompress(given, _MOST_BYTES)
    while not (decompressor.eof or decompressor.needs_input):
        yield decompressor.decompress(b"", _MOST_BYTES)


def _without_padding(given: bytes, source: io.RawIOBase) -> bytes:
    """What follows the zeros after a member; empty at the end of the file."""
    while not (found := given.lstrip(b"\0")):
        given = source.read(_PIECE_BYTES)
        if not given:
            return b""
    return found
