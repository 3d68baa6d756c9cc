"""A process that dies at any of its file operations, without the process: the operation raises, and all after it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree")


class Killed(BaseException):
    """What nobody catches."""


class _Countdown:
    left: int | None = None
    is_hooked = False


def _hook(event: str, _arguments: object) -> None:
    if _Countdown.left is None or event not in OPERATIONS:
        return
    _Countdown.left -= 1
    if _Countdown.left < 0:
        raise Killed


@contextmanager
def killed_after(num_operations: int) -> Iterator[None]:
    """Let so many file operations of this process happen, and none after them; the block may end before."""
    if not _Countdown.is_hooked:
        sys.addaudithook(_hook)  # it stays for good, and does nothing
        _Countdown.is_hooked = True
    _Countdown.left = num_operations
    try:
        yield
    except Killed:
        pass
    finally:
        _Countdown.left = None
