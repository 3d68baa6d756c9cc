"""Connections: how many there may be, and how long they may take to send a request and to take an answer.

uvicorn waits for ever for a request that does not come to its end, and for a reader that does not read.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from replay_service.errors import Overloaded, RequestTooSlow
from replay_service.gateway.middleware.access import OPEN_PATHS
from replay_service.gateway.middleware.beside import Beside, BesideConnection
from replay_service.gateway.middleware.problems import SAFE_HEADERS, of_error

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What connections are held to.

    Attributes:
        most: connections at a time; on any more, only health is told.
        io_timeout_s: how long a request may take to come, from its first byte or the connection's beginning, and how
            long an answer may wait to be taken.
    """

    most: int
    io_timeout_s: float


class WholeAnswers:
    """A transport that sends the head of an answer together with the first part of its body.

    Sent by itself, the head would wake the reader up for nothing, and cost as much as a body of a hundred kilobytes.
    It waits for its body no longer than the event loop takes to come round.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes | memoryview) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif data[: len(_BEGINS)] == _BEGINS:
            self._head = bytes(data)
            self._loop.call_soon(self._send_head)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._send_head()
        self._transport.close()

    def _send_head(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


_BEGINS: Final = b"HTTP/1."


class GuardedConnection(BesideConnection):
    """One connection, cut off when it is too slow. Subclasses have the limits: see `guarded_by`."""

    limits: ClassVar[ConnectionLimits]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(WholeAnswers(transport, self.loop))  # type: ignore[arg-type]
        self._await_request()
        if len(self.connections) > self.limits.most:
            self.app, self.beside = self._refuse, None

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_came()
        self._answer_taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._await_request()
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._await_request()
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._request_came()
        super().on_message_complete()

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
        """Say what was too slow, if there is a request that can be answered, and close."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.more_body and not self.cycle.response_started:
            self.transport.write(_TOO_SLOW)
        self.transport.close()

    def _give_up_writing(self) -> None:
        _log.warning("cut off a reader that does not read", client=self.client and self.client[0])
        self.transport.abort()

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in OPEN_PATHS:
            await self.config.loaded_app(scope, receive, send)
            return
        error = Overloaded(f"there are {self.limits.most} connections already; ask again in a moment")
        response = of_error(error)
        response.headers.update({**SAFE_HEADERS, "Connection": "close"})
        await response(scope, receive, send)


def guarded_by(limits: ConnectionLimits, beside: Beside | None) -> type[GuardedConnection]:
    """The connections of a server with these limits, and what answers beside its application."""
    return type("LimitedConnection", (GuardedConnection,), {"limits": limits, "beside": beside})


def _raw(response: Response) -> bytes:
    """An answer as it goes over the wire, the last one of its connection."""
    response.headers.update({**SAFE_HEADERS, "Connection": "close"})
    head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
    return STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)


_TOO_SLOW: Final = _raw(of_error(RequestTooSlow("the request did not come in time; see the setting io_timeout_s")))
