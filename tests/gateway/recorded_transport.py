"""A transport that records what a connection sends, for tests without sockets."""

import asyncio
from collections.abc import Iterable


class Recorded(asyncio.Transport):
    """What reaches the system, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.is_closed = False
        self.is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def is_closing(self) -> bool:
        return self.is_closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.calls.append(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return False

    def abort(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.calls.append(b"closed")
        self.is_closed = True
