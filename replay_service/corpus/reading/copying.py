"""Copies of mapped memory that end with an error, and not the process, where a file was cut short.

Reading a mapped file beyond its end raises SIGBUS in the process that reads. The kernel reports the same as an error of
`process_vm_writev`, which copies between address spaces; here both are of this process. It prepares the target once
for many pieces of the source, where `process_vm_readv` prepares each piece.
"""

import ctypes
import functools
import itertools
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

UInt64Array = NDArray[np.uint64]

_MOST_PIECES: Final = 1024
"""IOV_MAX of Linux."""
_MOST_BYTES: Final = 1 << 30
"""Of one call; the kernel takes a little less than 2^31."""

_log = structlog.get_logger()


def copy_rows(addresses: UInt64Array, widths: Sequence[int]) -> tuple[list[NDArray[np.void]], int | None]:
    """Copy rows, and the parts of all rows beside one another.

    Args:
        addresses: uint64 [n], of mapped memory of this process: where each row begins.
        widths: bytes of each part; the parts of a row follow one another.

    Returns:
        The copies of each part, void [n], and a row that could not be copied, None if there is none. Where there is
        one, the copies hold anything.
    """
    num_rows, begins = len(addresses), [0, *itertools.accumulate(widths)]
    pieces = np.empty((len(widths), num_rows, 2), np.uint64)
    for part, (begin, width) in enumerate(zip(begins[:-1], widths, strict=True)):
        np.add(addresses, np.uint64(begin), out=pieces[part, :, 0])
        pieces[part, :, 1] = width
    memory = np.empty(num_rows * begins[-1], np.uint8)
    failed = _copy_pieces(pieces.reshape(-1, 2), memory, max(widths))
    copies = [memory[num_rows * begin : num_rows * end].view(f"V{end - begin}") for begin, end in pairwise(begins)]
    return copies, None if failed is None else failed % num_rows


@functools.cache
def can_copy() -> bool:
    """Whether the system lets this process copy so; where it does not, the log warns of it once."""
    number, target = np.full(1, 7, np.uint64), np.zeros(1, np.uint64)
    try:
        is_possible = _copy(np.array([[number.ctypes.data, number.nbytes]], np.uint64), target) == number.nbytes
    except AttributeError:
        is_possible = False
    if not is_possible or target[0] != number[0]:
        _log.warning(
            "unsafe reading of corpora",
            problem="this system does not permit process_vm_writev",
            advice="never cut a segment file short while it is served, which ends this process: replace it by a rename",
        )
        return False
    return True


def _copy_pieces(pieces: UInt64Array, target: NDArray[np.uint8], widest: int) -> int | None:
    """Copy pieces of this process's memory, end to end.

    Args:
        pieces: uint64 [n, 2], the address of each and its length in bytes: the kernel's `struct iovec`.
        target: uint8, as long as all of them together.
        widest: the greatest length.

    Returns:
        The number of the first that could not be copied, None if there is none.
    """
    at_once = max(1, min(_MOST_PIECES, _MOST_BYTES // widest))
    begin = 0
    for first in range(0, len(pieces), at_once):
        some = pieces[first : first + at_once]
        end = len(target) if len(some) == len(pieces) - first else begin + int(some[:, 1].sum())
        num_copied = _copy(some, target[begin:end])
        if num_copied < end - begin:
            return int(np.searchsorted(np.cumsum(pieces[:, 1]), begin + num_copied, side="right"))
        begin = end
    return None


def _copy(pieces: UInt64Array, target: NDArray[Any]) -> int:
    """Copy as many pieces as a call may have; gives how many bytes it could."""
    into = (ctypes.c_size_t * 2)(target.ctypes.data, target.nbytes)
    num_bytes: int = _process_vm_writev()(os.getpid(), pieces.ctypes.data, len(pieces), into, 1, 0)
    return max(num_bytes, 0)


@functools.cache
def _process_vm_writev() -> Any:
    function = ctypes.CDLL(None).process_vm_writev
    function.restype = ctypes.c_ssize_t
    number, address = ctypes.c_ulong, ctypes.c_void_p
    function.argtypes = (ctypes.c_int, address, number, address, number, number)
    return function
