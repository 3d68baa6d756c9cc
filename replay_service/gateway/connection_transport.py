"""The transport of a server's connection: heads of answers leave with their bodies, and reading can be held."""

import asyncio
from typing import Any, Final

_BEGINS: Final = b"HTTP/1."
"""The first bytes of the head of an answer."""


class ConnectionTransport:
    """The transport of a connection: it can be held from reading, and sends the head of an answer with its body.

    A head that is sent by itself wakes the reader for nothing, and costs as much as a body of a hundred kilobytes. So
    it waits for the first part of its body, for one turn of the event loop at most.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._is_held = False
        self._has_ended = False

    def hold_reading(self) -> None:
        """Read nothing until `release_reading`, although `resume_reading` may be called before."""
        self._is_held = True
        self._transport.pause_reading()

    def release_reading(self, may_read: bool) -> None:
        self._is_held = False
        if may_read:
            self._transport.resume_reading()

    def resume_reading(self) -> None:
        if not self._is_held:
            self._transport.resume_reading()

    def write(self, data: bytes | memoryview) -> None:
        if self._has_ended or self._transport.is_closing():
            self._head = b""  # nobody is there to read it
        elif self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif data[: len(_BEGINS)] == _BEGINS:
            self._head = bytes(data)
            self._loop.call_soon(self._send_head)
        else:
            self._transport.write(data)

    def write_eof(self) -> None:
        """Send what is left, and drop what is written from now on."""
        self._send_head()
        self._has_ended = True
        self._transport.write_eof()

    def close(self) -> None:
        self._send_head()
        self._transport.close()

    def _send_head(self) -> None:
        if self._head and not self._transport.is_closing():
            head, self._head = self._head, b""
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
