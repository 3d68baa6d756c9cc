"""HTTP/1.1 to one service, on sockets, at whichever of its addresses answers."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Lock
from typing import Final, NamedTuple

import httptools
import httpx2

from replay_trainer.http_connection import Connection, Received, time_left
from replay_trainer.http_response import HttpResponse
from replay_trainer.places import Places
from replay_trainer.refusals import is_overload, is_passing
from replay_trainer.routes import CONNECT_S, Place, Route

IDLE_S: Final = 4.0
"""uvicorn closes a connection that has been idle for five seconds."""

_FAILURES: Final = (OSError, httptools.HttpParserError, httptools.HttpParserUpgrade)


class HttpClient:
    """Opens sockets, and keeps those that are idle for the next request of any thread.

    A request ends at its deadline, however slowly the other side reads or writes. Where an address fails, or its
    service cannot answer now, the request goes to the next one, each of them once. A process that is forked opens
    sockets of its own.

    Args:
        routes: to the service; all of them lead to the same one.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)
        self._begin()

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline: float) -> HttpResponse:
        """The answer to one request, as HttpTransport says; the last refusal where no address could answer now."""
        failures: list[_Failure] = []
        refusal: HttpResponse | None = None
        for opened in self._connections(deadline, failures):
            route = opened.place.route
            try:
                received = self._exchanged(opened, route.request(method, path, headers, body), deadline)
            except _FAILURES as error:
                if not (opened.is_kept and isinstance(error, ConnectionError)):
                    failures.append(self._failure(opened.place, error))
                # Else the other side may have closed it as the request went out, which says nothing of the address.
                continue
            shown = f"{route.base_url}{path}{route.by}"
            answer = HttpResponse(shown, received.status, received.headers, received.content, route.by)
            if not is_passing(answer):
                self._places.answered(opened.place)
                return answer
            if not is_overload(answer):
                self._failure(opened.place, ConnectionError(f"HTTP {answer.status}"))
            refusal = answer
        if refusal is None:
            raise _error_of(failures)
        return refusal

    def close(self) -> None:
        self._idle.close()

    def _begin(self) -> None:
        self._process, self._idle, self._places = os.getpid(), _Idle(), Places(self._routes)

    def _connections(self, deadline: float, failures: "list[_Failure]") -> "Iterator[_Opened]":
        """One that is idle, then a new one to each address while there is time; what fails is added to `failures`."""
        if self._process != os.getpid():
            # Two processes that read one socket would get parts of each other's answers.
            self._begin()
        idle = self._idle.take()
        if idle is not None:
            yield idle
        try:
            places = self._places.in_order(deadline)
            for number, place in enumerate(places):
                share_s = time_left(deadline) / (len(places) - number)
                try:
                    connected = place.connect(min(CONNECT_S, share_s), time.monotonic() + share_s)
                except OSError as error:
                    failures.append(self._failure(place, error))
                else:
                    yield _Opened(place, Connection(connected))
        except OSError as error:
            if not failures:
                failures.append(_Failure(None, error))

    def _failure(self, place: Place, error: Exception) -> "_Failure":
        """Take note that an address failed."""
        self._idle.drop(place)
        self._places.failed(place, f"{type(error).__name__}: {error}")
        return _Failure(place, error)

    def _exchanged(self, opened: "_Opened", request: bytes, deadline: float) -> Received:
        connection = opened.connection
        is_sent = False
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # a refusal may have come before all was read
                connection.send(request, deadline)
                is_sent = True
            received = connection.receive(deadline)
        except BaseException:
            connection.close()
            raise
        if is_sent and received.may_go_on:
            self._idle.put(replace(opened, is_kept=True))
        else:
            connection.close()
        return received


@dataclass(frozen=True, slots=True)
class _Opened:
    """A connection to an address; `is_kept` says that it has served a request before."""

    place: Place
    connection: Connection
    is_kept: bool = False


class _Failure(NamedTuple):
    """How an address failed; without one, how none was found."""

    place: Place | None
    error: Exception

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"


def _error_of(failures: Sequence[_Failure]) -> httpx2.TransportError:
    """The failures of all addresses as one, whose cause is theirs."""
    if len(failures) == 1:
        error = httpx2.TransportError(str(failures[0]))
        error.__cause__ = failures[0].error
        return error
    error = httpx2.TransportError("; ".join(f"{each.place}: {each}" for each in failures))
    error.__cause__ = ExceptionGroup("no address answered", [each.error for each in failures])
    return error


class _Idle:
    """Connections that wait for a request; the one that was used last is taken first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: deque[tuple[float, _Opened]] = deque()
        self._is_closed = False

    def take(self) -> _Opened | None:
        """A connection that is open still."""
        while True:
            with self._lock:
                self._close(lambda used_at, _: used_at < time.monotonic() - IDLE_S)
                if not self._waiting:
                    return None
                _, opened = self._waiting.pop()
            if opened.connection.is_quiet():
                return opened
            opened.connection.close()

    def put(self, opened: _Opened) -> None:
        with self._lock:
            if not self._is_closed:
                self._waiting.append((time.monotonic(), opened))
                return
        opened.connection.close()

    def drop(self, place: Place) -> None:
        """Close those to an address."""
        with self._lock:
            self._close(lambda _, at: at == place)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._close(lambda *_: True)

    def _close(self, is_over: Callable[[float, Place], bool]) -> None:
        kept: deque[tuple[float, _Opened]] = deque()
        for used_at, opened in self._waiting:
            if is_over(used_at, opened.place):
                opened.connection.close()
            else:
                kept.append((used_at, opened))
        self._waiting = kept
