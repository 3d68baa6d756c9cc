"""Files side by side in memory: each byte of many mapped files has an address on one line."""

import ctypes
import itertools
import mmap
import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay_service.corpus.reading.copying import can_copy, copy_rows

_MAP_FIXED: Final = 0x10
_FAILED: Final = ctypes.c_void_p(-1).value


class SideBySide:
    """A stretch of addresses that files are mapped into.

    It takes up no memory of its own, and holds no file open. Addresses without a file read as zeros. A file that is
    cut short while it is mapped cannot be copied beyond its end; where `can_copy` is False, it ends the process.

    Args:
        num_bytes: the length of the stretch.

    Raises:
        OSError: when the system limits addresses to fewer.
    """

    def __init__(self, num_bytes: int) -> None:
        # What can only be read is not counted as memory that may be needed.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, max(num_bytes, 1), flags=flags, prot=mmap.PROT_READ)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8)
        self._address = np.uint64(self._bytes.ctypes.data)
        self._starting_anywhere: dict[int, NDArray[np.void]] = {}
        self._can_copy = can_copy()

    def __len__(self) -> int:
        return len(self._bytes)

    def put(self, file: int, start: int, num_bytes: int) -> None:
        """Map the first `num_bytes` of an open file to `start`, a multiple of 64 KiB, in place of what was there.

        Args:
            file: its descriptor, which may be closed afterwards.

        Raises:
            OSError: when the file cannot be mapped.
        """
        if start < 0 or start + num_bytes > len(self):
            raise ValueError(f"{num_bytes} bytes at {start} are beyond the {len(self)} that were set aside")
        if num_bytes:
            self._map(file, start, num_bytes)

    def gather(self, positions: NDArray[np.int64], widths: Sequence[int]) -> tuple[list[NDArray[np.void]], int | None]:
        """Copies of rows, in parts.

        Args:
            positions: int64 [n], within the stretch: where each row begins.
            widths: bytes of each part; the parts of a row follow one another.

        Returns:
            The copies of each part, void [n], and a row that could not be copied, None if there is none. Where there
            is one, the copies hold anything.
        """
        if self._can_copy:
            return copy_rows(positions.astype(np.uint64) + self._address, widths)
        begins = itertools.accumulate(widths[:-1], initial=0)
        copies = [self._bytes_from_anywhere(width)[positions + b] for b, width in zip(begins, widths, strict=True)]
        return copies, None

    def _bytes_from_anywhere(self, num_bytes: int) -> NDArray[np.void]:
        """At each place, the `num_bytes` bytes from there on: overlapping views, which one index gathers from."""
        views = self._starting_anywhere.get(num_bytes)
        if views is None:
            views = np.ndarray(len(self) - num_bytes + 1, f"V{num_bytes}", self._bytes, strides=1)
            self._starting_anywhere[num_bytes] = views
        return views

    def _map(self, file: int, start: int, num_bytes: int) -> None:
        flags = mmap.MAP_SHARED | _MAP_FIXED
        address = int(self._address) + start
        if _mmap()(address, num_bytes, mmap.PROT_READ, flags, file, 0) == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _mmap() -> Any:
    """The system's own mmap: Python's cannot be told where to map to."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    return function
