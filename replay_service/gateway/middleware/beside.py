"""Answers beside the application: a connection whose plain requests somebody else answers than a task of uvicorn's."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, Protocol, cast

import structlog
from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

_log = structlog.get_logger()

MOST_THREADS: Final = 40
"""That make replies at a time; more wait for one."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its status, the fields of its head, each a line of its own, and the parts of its body."""

    status: int
    fields: bytes
    body: Sequence[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Work:
    """What makes a reply on another thread.

    Attributes:
        make: makes it; raises nothing.
        done: called on the event loop when it is made, whether it was sent or not.
    """

    make: Callable[[], Reply]
    done: Callable[[], None]


Waiting = list[Callable[[], None]]
"""What is to be called on the event loop when others' work is done; a request that waits for that appends itself."""


class Beside(Protocol):
    """Answers plain requests; those that it does not take go to the application."""

    def admit(self, scope: Scope) -> Any:
        """What `answer` needs of a request whose head has come; None if the application is to answer."""
        ...

    def answer(self, admitted: Any, body: bytes | bytearray) -> Reply | Work | Waiting | None:
        """The answer, or the work that it takes, or others who wait to ask again; None if the application is to answer
        after all."""
        ...


@dataclass(frozen=True, slots=True)
class _Held:
    """A request that was admitted, and waits for its body."""

    cycle: RequestResponseCycle
    app: ASGI3Application
    admitted: Any


class BesideConnection(HttpToolsProtocol):
    """One connection. A request that is admitted by `beside` is answered by it when its body is there."""

    beside: Beside | None = None
    _threads: ClassVar = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="answers")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: _Held | None = None
        self._is_head = False

    def on_headers_complete(self) -> None:
        self._is_head = True
        super().on_headers_complete()
        self._is_head = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """What uvicorn does with a request whose head has come, or whose turn has come in its queue."""
        is_plain = (
            self._is_head and cycle.keep_alive and not cycle.waiting_for_100_continue and not self.config.access_log
        )
        admitted = None
        if self.beside is not None and is_plain:
            with self._falling_back():
                admitted = self.beside.admit(cast(Scope, cycle.scope))
        if admitted is None:
            super()._start_asgi_task(cycle, app)
        else:
            self._held = _Held(cycle, app, admitted)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self._held is not None:
            self.flow.resume_reading()  # uvicorn pauses until the application asks for more

    def on_message_complete(self) -> None:
        super().on_message_complete()
        held, self._held = self._held, None
        if held is not None:
            self._answer(held)

    def _answer(self, held: _Held) -> None:
        if held.cycle.disconnected:
            return
        found = None
        # Who does not take what was answered before gets no more until then, which uvicorn's task waits for.
        if self.beside is not None and not self.flow.write_paused:
            with self._falling_back():
                found = self.beside.answer(held.admitted, held.cycle.body)
        if found is None:
            super()._start_asgi_task(held.cycle, held.app)
        elif isinstance(found, Reply):
            self._send(held.cycle, found)
        elif isinstance(found, Work):
            self._threads.submit(self._work, held.cycle, found)
        else:
            found.append(partial(self._answer, held))

    @contextmanager
    def _falling_back(self) -> Iterator[None]:
        """What nobody foresaw is the application's to answer, and the log's to tell."""
        try:
            yield
        except Exception as error:
            _log.error("not answered beside the application", exc_info=error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._held = None
        super().connection_lost(exc)

    def _work(self, cycle: RequestResponseCycle, work: Work) -> None:
        reply = work.make()
        with suppress(RuntimeError):  # the event loop is closed: the server has given up waiting
            self.loop.call_soon_threadsafe(self._finish, cycle, work, reply)

    def _finish(self, cycle: RequestResponseCycle, work: Work, reply: Reply) -> None:
        self._send(cycle, reply)
        work.done()

    def _send(self, cycle: RequestResponseCycle, reply: Reply) -> None:
        if cycle.disconnected or self.transport.is_closing():
            return
        cycle.response_started = cycle.response_complete = True
        fields = [b"%b: %b\r\n" % each for each in self.server_state.default_headers]
        if not cycle.keep_alive:
            fields.append(b"connection: close\r\n")
        head = b"".join([STATUS_LINE[reply.status], *fields, reply.fields, b"\r\n"])
        self.transport.writelines([head, *reply.body])
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()
