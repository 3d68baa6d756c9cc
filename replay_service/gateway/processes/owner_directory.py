"""Where a gateway finds the owner: at one place for ever, or in a cluster wherever its own replica says that it is."""

import asyncio
import contextlib
import json
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import httpcore2

from replay_service.errors import NotOwner
from replay_service.gateway.processes.link import EPOCH_HEADER, OWNER_PATH, Header, Link

_KEPT_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.25
_LOOK_WITHIN_S: Final = 2.0
_FINISH_S: Final = 3.0
"""How long requests to a process that is no longer the owner may take. One that was told to stop finishes them."""

_SILENT_S: Final = 5
_LOST_IN_SILENCE: Final = (
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_S * 1000),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
)
"""Options of a socket: a host that no longer answers at all is given up, however long the answer may take."""


@dataclass(slots=True, eq=False)
class OwnerPlace:
    """A process that can be asked for the owner.

    Attributes:
        name: for people.
        host: of its URLs.
        port: likewise; None on a Unix socket.
        pool: connections to it.
        headers: of each request to it.
        epoch: of the lease under which it is the owner; 0 outside a cluster.
    """

    name: str
    host: str
    port: int | None
    pool: httpcore2.AsyncConnectionPool
    headers: tuple[Header, ...] = ()
    epoch: int = 0
    _scopes: set[anyio.CancelScope] = field(default_factory=set)

    @classmethod
    def on_socket(cls, path: Path) -> "OwnerPlace":
        pool = httpcore2.AsyncConnectionPool(uds=str(path), max_connections=None, keepalive_expiry=_KEPT_S)
        return cls(str(path), "owner", None, pool)

    @classmethod
    def at(cls, address: str, epoch: int = 0) -> "OwnerPlace":
        """At host:port, under a lease."""
        host, _, port = address.rpartition(":")
        pool = httpcore2.AsyncConnectionPool(
            max_connections=None, keepalive_expiry=_KEPT_S, socket_options=_LOST_IN_SILENCE
        )
        return cls(address, host.strip("[]"), int(port), pool, ((EPOCH_HEADER, b"%d" % epoch),), epoch)

    def url(self, target: bytes) -> httpcore2.URL:
        return httpcore2.URL(scheme=b"http", host=self.host.encode(), port=self.port, target=target)

    @contextlib.contextmanager
    def used_by(self, scope: anyio.CancelScope) -> Iterator[None]:
        """Have a request cancelled when this is no longer the owner."""
        self._scopes.add(scope)
        try:
            yield
        finally:
            self._scopes.discard(scope)

    async def leave(self) -> None:
        """Cancel the requests to it, and close its connections."""
        for each in list(self._scopes):
            each.cancel()
        await self.pool.aclose()


class OwnerDirectory(ABC):
    """Knows where the owner is."""

    @abstractmethod
    async def place(self) -> OwnerPlace:
        """Where it is; raises NotOwner while nobody is."""

    @abstractmethod
    async def place_after(self, tried: OwnerPlace) -> OwnerPlace:
        """Where it is, looked up again because a place was the wrong one; this place itself when there is no other.

        Raises:
            NotOwner: while nobody is the owner.
        """

    @abstractmethod
    def missed(self, place: OwnerPlace) -> None:
        """Note that a place cannot be reached while a caller waits."""

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""


class FixedPlace(OwnerDirectory):
    """The owner is at one place for ever."""

    def __init__(self, place: OwnerPlace) -> None:
        self._place = place

    async def place(self) -> OwnerPlace:
        return self._place

    async def place_after(self, tried: OwnerPlace) -> OwnerPlace:
        return tried

    def missed(self, place: OwnerPlace) -> None:
        pass

    async def close(self) -> None:
        await self._place.leave()


class FollowedOwner(OwnerDirectory):
    """The owner of a cluster, as the candidate of this replica knows it.

    While the candidate does not answer, the owner is taken to be where it was.

    Args:
        candidate: this replica's.
    """

    def __init__(self, link: Link, candidate: OwnerPlace) -> None:
        self._link = link
        self._candidate = candidate
        self._place: OwnerPlace | None = None
        self._missed: int | None = None
        self._looking = asyncio.Lock()
        self._num_looks = 0
        self._leaving: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._follow())

    async def place(self) -> OwnerPlace:
        if self._place is None:
            await self._look()
        return self._known_place()

    async def place_after(self, tried: OwnerPlace) -> OwnerPlace:
        if self._place is tried:
            await self._look()
        return self._known_place()

    def _known_place(self) -> OwnerPlace:
        if self._place is None:
            raise NotOwner("no replica owns the runs at this moment; ask again")
        return self._place

    def missed(self, place: OwnerPlace) -> None:
        self._missed = place.epoch

    async def close(self) -> None:
        for each in (self._task, *self._leaving):
            each.cancel()
        if self._place is not None:
            await self._place.leave()
        await self._candidate.leave()

    async def _follow(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self) -> None:
        """Ask the candidate, and say to it when callers miss the owner; all who wait share one question."""
        begun = self._num_looks
        async with self._looking:
            if self._num_looks > begun:
                return  # this question was asked while the caller waited
            self._num_looks += 1
            missed, self._missed = self._missed, None
            body = json.dumps({"epoch": missed}).encode()
            try:
                async with asyncio.timeout(_LOOK_WITHIN_S):
                    response = await self._candidate.pool.request(
                        "GET" if missed is None else "POST",
                        self._candidate.url(OWNER_PATH.encode()),
                        headers=[*self._link.headers(), (b"content-length", b"%d" % len(body))],
                        content=body,
                    )
                said = json.loads(response.content)
                await self._move(said["epoch"], self._candidate.name if said["is_here"] else said["address"])
            except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, TimeoutError, OSError):
                pass  # it starts again
            except (ValueError, KeyError):
                pass  # it refused: its log says why

    async def _move(self, epoch: int, address: str) -> None:
        before = self._place
        if before is not None and (before.epoch, before.name) == (epoch, address):
            return
        if before is not None and epoch < before.epoch:
            return  # the candidate knows less than it did
        self._place = OwnerPlace.at(address, epoch) if address else None
        if before is not None:
            leaving = asyncio.create_task(_leave_later(before))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)


async def _leave_later(place: OwnerPlace) -> None:
    await asyncio.sleep(_FINISH_S)
    await place.leave()
