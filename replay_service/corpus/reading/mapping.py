"""Files side by side in memory: numpy sees many mapped files as one array, and gathers from all of them at once."""

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MAP_FIXED: Final = 0x10
_FAILED: Final = ctypes.c_void_p(-1).value


class SideBySide:
    """A stretch of addresses that files are mapped into.

    It takes up no memory of its own, and holds no file open. What no file was mapped to reads as zeros. A file must not
    be cut short while it is mapped: the system ends a process that reads beyond its end.

    Args:
        num_bytes: the length of the stretch.

    Raises:
        OSError: when the system limits addresses to fewer.
    """

    def __init__(self, num_bytes: int) -> None:
        # What can only be read is not counted as memory that may be needed.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, max(num_bytes, 1), flags=flags, prot=mmap.PROT_READ)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8)
        """uint8 [num_bytes], read-only; keeps the stretch alive."""

    def put(self, path: Path, start: int, most_bytes: int) -> int:
        """Map a file, or its first `most_bytes`, to `start`, a multiple of 64 KiB; gives how many bytes are there.

        Raises:
            OSError: when the file cannot be opened or mapped.
        """
        if start < 0 or start + most_bytes > len(self.bytes):
            raise ValueError(f"{most_bytes} bytes at {start} are beyond the {len(self.bytes)} that were set aside")
        with path.open("rb") as file:
            num_bytes = min(most_bytes, os.fstat(file.fileno()).st_size)
            if num_bytes:
                self._map(file.fileno(), start, num_bytes)
        return num_bytes

    def _map(self, descriptor: int, start: int, num_bytes: int) -> None:
        flags = mmap.MAP_SHARED | _MAP_FIXED
        address = self.bytes.ctypes.data + start
        if _mmap()(address, num_bytes, mmap.PROT_READ, flags, descriptor, 0) == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _mmap() -> Any:
    """The system's own mmap: Python's cannot be told where to map to."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    return function
