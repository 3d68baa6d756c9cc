"""One connection of HTTP/1.1 on a socket: a request goes out, and its answer comes in.

Answers are parsed by llhttp (`httptools`). A body of a stated length is received where it stays, without a copy: with
httpx a batch costs a training node three to four times the CPU time (`python -m tests.benchmarks.http_client`).
"""

import select
import socket
import time
from typing import Final

import httptools
import numpy as np

from replay_service.wire.protocol import CHECKSUM_HEADER

MOST_ANSWER_BYTES: Final = 4 << 30
"""What an answer may hold: whatever its head says, no more memory is set aside."""

_MOST_HEAD_BYTES: Final = 64 << 10
_READ_AT_ONCE: Final = 4 << 10
"""So that hardly more than the head is copied to the place of the body."""
_HEARD: Final = {
    name.encode("ascii"): name
    for name in ("content-length", "transfer-encoding", "retry-after", CHECKSUM_HEADER.lower())
}
"""Headers of answers that anything follows from."""


class Connection:
    """A connection, for one request at a time."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._readable = select.poll()
        self._readable.register(connected, select.POLLIN)

    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer: neither the end of the connection nor what nobody awaits."""
        return not self._readable.poll(0)

    def send(self, request: bytes, deadline: float) -> None:
        rest = memoryview(request)
        while rest:
            self._socket.settimeout(time_left(deadline))
            rest = rest[self._socket.send(rest) :]

    def receive_head(self, deadline: float) -> "Received":
        """The head of an answer that has nothing but a head, as that to CONNECT."""
        received = Received()
        try:
            self._receive_head(received, deadline)
        finally:
            del received.parser
        return received

    def receive(self, deadline: float) -> "Received":
        received = Received()
        try:
            self._receive_head(received, deadline)
            if received.length is not None and not received.is_whole:
                self._receive_into(received.place(received.length), deadline)
                received.is_whole = True
            while not received.is_whole:
                self._feed(received, _READ_AT_ONCE << 4, deadline)
        finally:
            del received.parser  # they know each other, and would keep the body until garbage is collected
        return received

    def _receive_head(self, received: "Received", deadline: float) -> None:
        received.parser = httptools.HttpResponseParser(received)
        while not received.is_head_whole:
            self._feed(received, _READ_AT_ONCE, deadline)

    def _feed(self, received: "Received", most_bytes: int, deadline: float) -> None:
        self._socket.settimeout(time_left(deadline))
        received.feed(self._socket.recv(most_bytes))

    def _receive_into(self, place: memoryview, deadline: float) -> None:
        while place:
            self._socket.settimeout(time_left(deadline))
            num_bytes = self._socket.recv_into(place)
            if not num_bytes:
                raise ConnectionError("the connection was closed within an answer")
            place = place[num_bytes:]

    def close(self) -> None:
        self._socket.close()


class Received:
    """What has come of an answer. The parser calls the methods that begin with `on`.

    Attributes:
        length: of the body, bytes, if the head states it; else its parts say where it ends, or the connection's end.
        may_go_on: whether the connection may have another request.
    """

    parser: httptools.HttpResponseParser

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.length: int | None = None
        self.may_go_on = False
        self.is_head_whole = False
        self.is_whole = False
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self._body: memoryview | None = None

    @property
    def content(self) -> bytes | memoryview:
        return b"".join(self._parts) if self._body is None else self._body

    def feed(self, data: bytes) -> None:
        """Take what has come next; nothing means that the connection has ended."""
        if not data:
            if not self.is_head_whole or self.may_go_on or "transfer-encoding" in self.headers:
                raise ConnectionError("the connection was closed before the end of an answer")
            self.is_whole = True
            return
        self._num_bytes += len(data)
        self.parser.feed_data(data)
        if not self.is_head_whole and self._num_bytes > _MOST_HEAD_BYTES:
            raise ConnectionError(f"the head of an answer has more than {_MOST_HEAD_BYTES} bytes")
        if max(self._num_bytes, self.length or 0) > MOST_ANSWER_BYTES:
            raise ConnectionError(f"an answer has more than {MOST_ANSWER_BYTES} bytes")

    def place(self, length: int) -> memoryview:
        """Where the rest of a body of this length is to stand, behind what came with the head."""
        body = np.empty(length, dtype=np.uint8)
        first = b"".join(self._parts)
        body[: len(first)] = np.frombuffer(first, dtype=np.uint8)
        self._body = body.data.toreadonly()
        return body.data[len(first) :]

    def on_message_begin(self) -> None:
        self.headers.clear()
        if self.is_whole:
            raise ConnectionError("more came than the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        heard = _HEARD.get(name.lower())
        if heard is not None:
            self.headers[heard] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.may_go_on = self.parser.should_keep_alive()
        if self.status >= 200:  # what comes before the answer says nothing
            self.is_head_whole = True
            length = self.headers.get("content-length")
            self.length = None if length is None else int(length)

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        self.is_whole = self.is_head_whole


def time_left(deadline: float) -> float:
    """How long an operation on a socket may take, seconds.

    Raises:
        TimeoutError: when the deadline has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the request's deadline has passed")
    return left
