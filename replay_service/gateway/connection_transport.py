"""The transport of a server's connection: what is written in one turn of the event loop leaves together."""

import asyncio
from typing import Any, Final

_MOST_HELD_BYTES: Final = 256 << 10
"""Bytes that wait for more: a system call for each quarter of a megabyte costs little."""


class ConnectionTransport:
    """The transport of a connection: it can be held from reading, and sends what is written in one turn together.

    The head of an answer and the parts of its body are written one by one. Each that is sent by itself costs a system
    call and wakes the reader, as much as a body of a hundred kilobytes. So they wait for the end of the turn, or until
    they are `_MOST_HELD_BYTES`.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes | memoryview] = []
        self._num_held_bytes = 0
        self._is_reading_held = False
        self._has_ended = False

    def hold_reading(self) -> None:
        """Read nothing until `release_reading`, although `resume_reading` may be called before."""
        self._is_reading_held = True
        self._transport.pause_reading()

    def release_reading(self, may_read: bool) -> None:
        self._is_reading_held = False
        if may_read:
            self._transport.resume_reading()

    def resume_reading(self) -> None:
        if not self._is_reading_held:
            self._transport.resume_reading()

    def write(self, data: bytes | memoryview) -> None:
        if self._has_ended or self._transport.is_closing():
            self._take_held()  # nobody is there to read it
            return
        if not self._held:
            self._loop.call_soon(self._send_held)
        self._held.append(data)
        self._num_held_bytes += len(data)
        if self._num_held_bytes >= _MOST_HELD_BYTES:
            self._send_held()

    def write_eof(self) -> None:
        """Send what is left, and drop what is written from now on."""
        self._send_held()
        self._has_ended = True
        self._transport.write_eof()

    def close(self) -> None:
        self._send_held()
        self._transport.close()

    def _send_held(self) -> None:
        held = self._take_held()
        if held and not self._transport.is_closing():
            self._transport.writelines(held)

    def _take_held(self) -> list[bytes | memoryview]:
        held, self._held, self._num_held_bytes = self._held, [], 0
        return held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
