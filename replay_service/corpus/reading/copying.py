"""Copies of mapped memory that end with an error, and not the process, where a file was cut short.

Reading a mapped file beyond its end raises SIGBUS in the process that reads. The kernel reports the same as an error of
`process_vm_readv`, which copies between address spaces; here both are of this process.
"""

import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

_IOVEC: Final = np.dtype([("base", np.uintp), ("length", np.uintp)])
_MOST_PIECES: Final = 1024
"""IOV_MAX of Linux."""
_MOST_BYTES: Final = 1 << 30
"""Of one call; the kernel takes a little less than 2^31."""

_log = structlog.get_logger()


def copy_rows(addresses: NDArray[np.uint64], widths: Sequence[int]) -> tuple[list[NDArray[np.void]], int]:
    """Copy rows, and the parts of all rows beside one another.

    The kernel takes longer to find a row than to copy it, so each row is one piece of memory to it.

    Args:
        addresses: uint64 [n], of mapped memory of this process: where each row begins.
        widths: bytes of each part; the parts of a row follow one another.

    Returns:
        The copies of each part, void [n], and how many rows, counted from the first, are whole. The others hold
        anything.
    """
    row_bytes = sum(widths)
    copies = [np.empty(len(addresses), f"V{width}") for width in widths]
    rows = np.empty(len(addresses), _IOVEC)
    rows["base"], rows["length"] = addresses, row_bytes
    targets = np.empty((len(addresses), len(widths)), _IOVEC)
    targets["length"] = widths
    for part, copy in enumerate(copies):
        targets["base"][:, part] = np.arange(len(copy), dtype=np.uintp) * copy.itemsize + np.uintp(copy.ctypes.data)
    at_once = max(1, min(_MOST_PIECES // len(widths), _MOST_BYTES // row_bytes))
    for first in range(0, len(rows), at_once):
        some = rows[first : first + at_once]
        num_whole = _copy(some, targets[first : first + at_once]) // row_bytes
        if num_whole < len(some):
            return copies, first + num_whole
    return copies, len(rows)


@functools.cache
def can_copy() -> bool:
    """Whether the system lets this process copy so; where it does not, the log warns of it once."""
    number = np.arange(1, dtype=np.uint64) + 7
    try:
        is_possible = _copy(_piece_of(number), _piece_of(target := np.zeros_like(number))) == number.nbytes
    except AttributeError:
        is_possible = False
    if not is_possible or target[0] != number[0]:
        _log.warning(
            "unsafe reading of corpora",
            problem="this system does not permit process_vm_readv",
            advice="never cut a segment file short while it is served, which ends this process: replace it by a rename",
        )
        return False
    return True


def _piece_of(array: NDArray[Any]) -> NDArray[np.void]:
    return np.array([(array.ctypes.data, array.nbytes)], _IOVEC)


def _copy(pieces: NDArray[np.void], targets: NDArray[np.void]) -> int:
    """Copy pieces of this process's memory, end to end, into others (_IOVEC); gives how many bytes it could."""
    into, from_ = (targets.ctypes.data, targets.size), (pieces.ctypes.data, pieces.size)
    num_bytes: int = _process_vm_readv()(os.getpid(), *into, *from_, 0)
    return max(num_bytes, 0)


@functools.cache
def _process_vm_readv() -> Any:
    function = ctypes.CDLL(None).process_vm_readv
    function.restype = ctypes.c_ssize_t
    number, address = ctypes.c_ulong, ctypes.c_void_p
    function.argtypes = (ctypes.c_int, address, number, address, number, number)
    return function
