"""The state of a file: what changes when the file is changed or replaced."""

import os
from typing import NamedTuple


class FileState(NamedTuple):
    """Times are in ns since 1970."""

    num_bytes: int
    mtime_ns: int
    inode: int
    ctime_ns: int


def state_at(path: str) -> FileState | None:
    """The state of a file; None when there is none to be seen."""
    try:
        status = os.stat(path)  # noqa: PTH116 (of many files, for every batch)
    except OSError:
        return None
    return FileState(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)
