"""Connections: bounds on the bytes that a peer sends, on those that wait for it, and on the time that it may take.

uvicorn by itself reads heads of any length, queues any number of pipelined requests, takes trailer fields for headers,
loses the body of a request that asks for an upgrade, and waits for ever for a request that does not come to its end or
for a reader that does not read. Only methods of asyncio's protocols and of the parser's callbacks are overridden here.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import httptools
import structlog
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from replay_service.errors import (
    HeadTooLarge,
    MalformedRequest,
    Overloaded,
    ReplayError,
    RequestTooSlow,
    UpgradeRefused,
)
from replay_service.gateway.connection_transport import ConnectionTransport
from replay_service.gateway.middleware.access import OPEN_PATHS
from replay_service.gateway.middleware.problems import SAFE_HEADERS, of_error

_log = structlog.get_logger()

MAX_HEAD_BYTES: Final = 16 << 10
"""Most bytes of a request's line and header fields, and of anything between the parts of a chunked body or after it."""

_LINGER_S: Final = 1.0
"""How long a connection stays open after a refusal, so that the refusal reaches the peer."""

_MOST_DISCARDED_BYTES: Final = 1 << 20
"""Most bytes that are read from a peer after a refusal."""

_SLICE_BYTES: Final = 1 << 10
"""Bytes that the parser gets at a time. This bounds how many pipelined requests are queued at a time."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of every connection of a server.

    Attributes:
        most: connections at a time; on any more only health is answered.
        io_timeout_s: how long a request may take to come, from its first byte or the connection's beginning, and how
            long an answer may wait to be taken.
    """

    most: int
    io_timeout_s: float


class BoundedConnection(HttpToolsProtocol):
    """One connection within limits. `bounded_by` makes the subclass that a server uses."""

    limits: ClassVar[ConnectionLimits]
    is_stopping: Callable[[], bool]
    on_refusal: Callable[[str, int], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._unread = b""
        """Bytes that arrived while requests were queued; they are parsed when these are answered."""
        self._unparsed_bytes = 0
        """Bytes since the parser last found the end of a head or of a request, or a part of a body."""
        self._body_left = 0
        """Bytes of the present request's body that have not come yet, where its length was given."""
        self._is_in_head = False
        self._is_in_body = False
        self._refusal: ReplayError | None = None
        """The last answer of this connection; bytes that come after it are discarded."""
        self._is_closing_soon = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._connection = ConnectionTransport(transport, self.loop)
        super().connection_made(self._connection)  # type: ignore[arg-type]
        self._await_request()
        if len(self.connections) > self.limits.most:
            self.app = self._tell_health_alone

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread = b""
        self._request_came()
        self._answer_taken()
        super().connection_lost(exc)

    # What is read

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            self._discard(data)
            return
        if self._is_idle():
            self._await_request()
        self._unread += data
        self._parse()

    def _parse(self) -> None:
        """Parse what has come, up to a request that must wait for those before it to be answered."""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        unread, begin = memoryview(self._unread), 0
        while begin < len(unread) and not self.pipeline and self._refusal is None and not self.transport.is_closing():
            part = unread[begin : begin + max(self._body_left, _SLICE_BYTES)]
            self._parse_part(part)
            begin += len(part)
        self._unread = self._unread[begin:] if self._refusal is None else b""
        if self._unread:
            self._connection.hold_reading()
        else:
            self._connection.release_reading(not self.flow.read_paused)

    def _parse_part(self, part: memoryview) -> None:
        self._unparsed_bytes += len(part)
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserUpgrade:
            pass  # on_headers_complete has refused it
        except httptools.HttpParserError as error:
            self._refuse(MalformedRequest(f"this is no HTTP/1.1 request: {error or 'it cannot be parsed'}"))
        if self._unparsed_bytes > MAX_HEAD_BYTES:
            self._refuse(
                HeadTooLarge(f"the head of a request may have {MAX_HEAD_BYTES} bytes, with its path and all headers")
            )

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._await_request()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # else it is a trailer field, which is no header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head, self._unparsed_bytes = False, 0
        if self.parser.should_upgrade():
            self._refuse(
                UpgradeRefused(
                    "this service speaks HTTP/1.1 and no other protocol; send no Upgrade header (with curl: "
                    "leave out --http2), and no CONNECT"
                )
            )
        elif [name for name, _ in self.headers].count(b"host") > 1:
            self._refuse(MalformedRequest("a request has one Host header"))
        if self._refusal is not None:
            return
        self._is_in_body = True
        self._body_left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        super().on_headers_complete()
        if self.is_stopping():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if self._refusal is None:
            self._unparsed_bytes = 0
            self._body_left = max(0, self._body_left - len(body))
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._request_came()
        if self._refusal is None:
            self._is_in_body, self._unparsed_bytes, self._body_left = False, 0, 0
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._refusal is not None:
            self._say_refusal()
        elif self._unread:
            # By a call of its own: an answer that is made at once would otherwise be a call within a call.
            self.loop.call_soon(self._parse)

    # What is refused

    def _refuse(self, error: ReplayError) -> None:
        """Answer what was asked before, then say what is wrong, and close."""
        if self._refusal is None:
            self._refusal = error
            self._say_refusal()

    def _say_refusal(self) -> None:
        """Send the refusal, unless earlier requests await answers. An answered request gets no second answer."""
        if self.transport.is_closing() or self.pipeline or self._refusal is None:
            return
        awaits_body = self._awaits_body()
        if self._is_idle() or awaits_body:
            if awaits_body or not self._is_in_body:
                self._write_refusal(self._refusal)
            self._close_after_reading()

    def _write_refusal(self, error: ReplayError) -> None:
        self.on_refusal(error.slug, error.status)
        self.transport.write(_raw(error))

    def _close_after_reading(self) -> None:
        """Close, and give the peer time to read: a socket that is closed while something comes loses what was sent."""
        if not self.transport.can_write_eof() or self._is_closing_soon:
            self.transport.close()
            return
        self._is_closing_soon = True
        self.transport.write_eof()
        if self.cycle is not None:  # a request whose body does not come has nobody left to answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_reading()
        self._request_came()
        self.loop.call_later(_LINGER_S, self.transport.close)

    def _discard(self, data: bytes) -> None:
        """Drop the bytes that come after a refusal, and close when there are too many."""
        self._unparsed_bytes += len(data)
        if self._unparsed_bytes > _MOST_DISCARDED_BYTES:
            self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _awaits_body(self) -> bool:
        """Whether a request is being answered, can still be answered otherwise, and has not come to its end."""
        return self.cycle is not None and self.cycle.more_body and not self.cycle.response_started

    async def _tell_health_alone(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in OPEN_PATHS:
            await self.config.loaded_app(scope, receive, send)
            return
        error = Overloaded(f"there are {self.limits.most} connections already; ask again in a moment")
        self.on_refusal("too-many-connections", error.status)
        response = of_error(error)
        response.headers.update({**SAFE_HEADERS, "Connection": "close"})
        await response(scope, receive, send)

    # What takes too long

    def pause_writing(self) -> None:
        self._await_reader()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._answer_taken()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Closing waits until what was written is taken, but not for ever."""
        super().timeout_keep_alive_handler()
        self._await_reader()

    def _await_request(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(self.limits.io_timeout_s, self._give_up_reading)

    def _request_came(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _await_reader(self) -> None:
        if self._writing is None:
            self._writing = self.loop.call_later(self.limits.io_timeout_s, self._give_up_writing)

    def _answer_taken(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _give_up_reading(self) -> None:
        """Close; a request that can still be answered is first told that it was too slow."""
        if self.transport.is_closing():
            return
        if self._awaits_body():
            self._write_refusal(_TOO_SLOW)
        self.transport.close()

    def _give_up_writing(self) -> None:
        _log.warning("cut off a reader that does not read", client=self.client and self.client[0])
        self.transport.abort()


def bounded_by(
    limits: ConnectionLimits,
    is_stopping: Callable[[], bool] = lambda: False,
    on_refusal: Callable[[str, int], None] = lambda _reason, _status: None,
) -> type[BoundedConnection]:
    """The connections of a server with these limits.

    Args:
        is_stopping: while it returns True, each connection is closed after its next answer.
        on_refusal: gets the reason and the status of every answer that a connection gives without the application.
    """
    members = {"limits": limits, "is_stopping": staticmethod(is_stopping), "on_refusal": staticmethod(on_refusal)}
    return type("LimitedConnection", (BoundedConnection,), members)


def _raw(error: ReplayError) -> bytes:
    """The last answer of a connection, as it goes over the wire."""
    response = of_error(error)
    response.headers.update({**SAFE_HEADERS, "Connection": "close"})
    head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
    return STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)


_TOO_SLOW: Final = RequestTooSlow("the request did not come in time; see the setting io_timeout_s")
