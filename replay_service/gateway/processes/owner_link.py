"""A gateway's link to the owner's process: HTTP over connections to its Unix socket, which are kept and used again."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.types import Receive

from replay_service.errors import ServiceUnavailable
from replay_service.gateway.processes.owner_side import PlansRequest
from replay_service.gateway.wire.plans import decode_plans, decode_window, error_of
from replay_service.ledger.windows import Window
from replay_service.sampling.events import Planned

Header = tuple[bytes, bytes]

OWNER_KEEPS_S: Final = 3600
"""How long the owner keeps a connection that nothing comes on; gateways let them go long before."""
_KEPT_S: Final = 60.0
_PART_BYTES: Final = 1 << 16
_END_OF_HEAD: Final = b"\r\n\r\n"


@dataclass(slots=True)
class Answer:
    """What the owner answers; the body is read from the link, part by part."""

    status: int
    headers: list[Header]
    parts: AsyncIterator[bytes]


@dataclass(slots=True)
class _Link:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    idle_since: float = 0.0


@dataclass(slots=True)
class OwnerLink:
    """Requests to the owner, each on a connection that no other request uses meanwhile. It plans as the owner does.

    Raises, from every method:
        ServiceUnavailable: when the owner does not answer.
    """

    path: Path
    _idle: list[_Link] = field(default_factory=list)

    @asynccontextmanager
    async def request(
        self, head: bytes, body: AsyncIterator[bytes] | None = None, is_head: bool = False
    ) -> AsyncIterator[Answer]:
        """Send a request; its answer, whose parts must all be read within the context.

        Args:
            head: as it goes over the wire, and with it a body that is short.
            body: as it goes over the wire. When the owner answers before it has all of it, the rest is not sent.
            is_head: whether the method is HEAD, whose answers have no body.
        """
        link = await self._link()
        can_go_on = False
        try:
            try:
                link.writer.write(head)
                if body is None:
                    content, is_sent = await link.reader.readuntil(_END_OF_HEAD), True
                else:
                    content, is_sent = await _exchange(link, body)
                status, headers = _parsed(content)
            except (OSError, asyncio.IncompleteReadError) as error:
                raise _unreachable() from error
            fields = dict(headers)
            has_body = not is_head and status not in (204, 304)
            yield Answer(status, headers, _parts(link.reader, fields if has_body else {}))
            can_go_on = is_sent and fields.get(b"connection") != b"close"
        finally:
            if can_go_on:
                link.idle_since = time.monotonic()
                self._idle.append(link)
            else:
                link.writer.close()

    async def window(self, run: str, first_step: int, num_steps: int) -> Window:
        return decode_window(await self._plans(PlansRequest(run, first_step, num_steps)))

    async def planned(self, run: str, first_step: int, num_steps: int) -> Sequence[Planned]:
        plans, _ = decode_plans(await self._plans(PlansRequest(run, first_step, num_steps, only_made=True)))
        return plans

    async def _plans(self, wanted: PlansRequest) -> bytes:
        """What the owner says to a request for plans; raises what the owner's planner raises."""
        content = json.dumps(wanted.to_dict()).encode()
        # It has no CLIENT_HEADER, by which the owner knows it from what callers send.
        head = f"POST /plans HTTP/1.1\r\nHost: owner\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        async with self.request(head + content) as answer:
            body = b"".join([part async for part in answer.parts])
        if answer.status == HTTPStatus.OK:
            return body
        error = error_of(json.loads(body))
        if error is None:
            raise RuntimeError(f"the owner could not plan: {body.decode()}")
        raise error

    def close(self) -> None:
        for link in self._idle:
            link.writer.close()
        self._idle.clear()

    async def _link(self) -> _Link:
        """A connection that is open; the one that was used last, so that those that are not needed grow old."""
        while self._idle:
            link = self._idle.pop()
            if time.monotonic() - link.idle_since < _KEPT_S and not link.reader.at_eof():
                return link
            link.writer.close()
        try:
            return _Link(*await asyncio.open_unix_connection(str(self.path), limit=1 << 20))
        except OSError as error:
            raise _unreachable() from error


def _unreachable() -> ServiceUnavailable:
    return ServiceUnavailable("the process that owns the runs does not answer; ask again in a moment")


async def _exchange(link: _Link, body: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """The head of the answer to a request whose head was sent, and whether all of the body was sent before it came."""
    answering = asyncio.create_task(link.reader.readuntil(_END_OF_HEAD))
    sending = asyncio.create_task(_send(link.writer, body))
    try:
        await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
        is_sent = sending.done() and sending.result()
        return await answering, is_sent
    finally:
        sending.cancel()
        answering.cancel()


async def _send(writer: asyncio.StreamWriter, body: AsyncIterator[bytes]) -> bool:
    """Whether all of a body was sent; not when the owner goes away, who may have answered before."""
    async for part in body:
        writer.write(part)
        try:
            await writer.drain()
        except OSError:
            return False
    return True


async def body_of(receive: Receive, is_chunked: bool) -> AsyncIterator[bytes]:
    """The body of a request as it goes over the wire; raises ServiceUnavailable when its sender goes away."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ServiceUnavailable("the body did not come to its end")
        part, more = message.get("body", b""), message.get("more_body", False)
        if part:
            yield b"%x\r\n%b\r\n" % (len(part), part) if is_chunked else part
    if is_chunked:
        yield b"0\r\n\r\n"


def _parsed(head: bytes) -> tuple[int, list[Header]]:
    first, *lines = head[:-4].split(b"\r\n")
    pairs = (line.split(b": ", 1) for line in lines)
    return int(first.split(b" ", 2)[1]), [(name.lower(), value) for name, value in pairs]


async def _parts(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> AsyncIterator[bytes]:
    """The body of an answer, part by part."""
    if b"transfer-encoding" in headers:
        while num_bytes := int(await reader.readuntil(b"\r\n"), 16):
            yield await reader.readexactly(num_bytes)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return
    left = int(headers.get(b"content-length", b"0"))
    while left:
        part = await reader.read(min(left, _PART_BYTES))
        if not part:
            raise _unreachable()
        left -= len(part)
        yield part
