"""A gateway's client of the owner: it passes requests on, and plans as the owner does."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import anyio
import httpcore2
import structlog

from replay_service.errors import MalformedRequest, NotOwner, ServiceUnavailable
from replay_service.gateway.processes.link import PLANS_PATH, REFUSED_HEADER, Header, Link, PlansRequest, said_in
from replay_service.gateway.processes.owner_directory import OwnerDirectory, OwnerPlace
from replay_service.gateway.processes.plans import decode_plans, decode_window, error_of
from replay_service.ledger.plan_windows import Window
from replay_service.sampling.events import Planned

OWNER_KEEPS_S: Final = 3600
"""How long the owner keeps a connection that nothing comes on; gateways let them go long before."""
OWNER_LOST: Final = (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError)
"""Errors of a request to an owner that does not answer, or whose answer breaks off."""
_NOT_SENT: Final = (httpcore2.ConnectError, httpcore2.ConnectTimeout)
_TIMEOUTS_S: Final = {"connect": 2.0, "read": 120.0, "write": 60.0, "pool": 60.0}

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class OwnerResponse:
    """An answer of the owner, whole."""

    status: int
    headers: list[Header]
    body: bytes


class _NotTaken(Exception):
    """The process that was asked has not looked at the request, so that it can be sent to another one."""


class OwnerClient:
    """Requests to the owner, wherever it is. A request goes out with its whole body, whose length is counted here.

    In a cluster the owner may change: a request that was not looked at goes to the new one, and one that waits for an
    answer of the old one ends.

    Raises, from every method:
        NotOwner: when nobody owns the runs for a moment.
        ServiceUnavailable: when the owner does not answer.
    """

    def __init__(self, link: Link, directory: OwnerDirectory) -> None:
        self._link = link
        self._directory = directory

    async def request(self, method: str, target: bytes, headers: Sequence[Header], body: bytes) -> OwnerResponse:
        """Ask the owner.

        Args:
            headers: without those that frame the body.

        Raises:
            MalformedRequest: when it cannot be put into HTTP/1.1.
        """
        framed = [*headers, (b"content-length", b"%d" % len(body))] if body or method in ("POST", "PATCH") else headers
        place = await self._directory.place()
        try:
            return await self._ask(place, method, target, framed, body)
        except _NotTaken as first:
            other = await self._directory.place_after(place)
            if other is place:
                raise _unavailable(first) from first
            try:
                return await self._ask(other, method, target, framed, body)
            except _NotTaken as second:
                raise _unavailable(second) from second

    async def _ask(
        self, place: OwnerPlace, method: str, target: bytes, headers: Sequence[Header], body: bytes
    ) -> OwnerResponse:
        with anyio.CancelScope() as scope, place.used_by(scope):
            try:
                response = await place.pool.request(
                    method,
                    place.url(target),
                    headers=[*headers, *place.headers],
                    content=body or None,
                    extensions={"timeout": _TIMEOUTS_S},
                )
            except httpcore2.LocalProtocolError as error:
                raise MalformedRequest(f"this is no HTTP/1.1 request: {error}") from error
            except _NOT_SENT as error:
                self._directory.missed(place)
                raise _NotTaken from error
            except OWNER_LOST as error:
                self._directory.missed(place)
                raise _unavailable(error) from error
            answer_headers = [(name.lower(), value) for name, value in response.headers]
            _check_taken(response.status, answer_headers, place)
            return OwnerResponse(response.status, answer_headers, response.content)
        raise NotOwner("another replica has become the owner of the runs meanwhile; ask again")

    @asynccontextmanager
    async def stream(self, target: bytes, headers: Sequence[Header]) -> AsyncIterator[httpcore2.Response]:
        """Ask the owner for something that comes bit by bit, and does not end by itself."""
        place = await self._directory.place()
        try:
            async with place.pool.stream(
                "GET",
                place.url(target),
                headers=[*headers, *place.headers],
                extensions={"timeout": _TIMEOUTS_S},
            ) as response:
                _check_taken(response.status, [(name.lower(), value) for name, value in response.headers], place)
                yield response
        except (_NotTaken, *OWNER_LOST) as error:
            raise _unavailable(error) from error

    async def window(self, run: str, first_step: int, num_steps: int) -> Window:
        return decode_window(await self._plans(PlansRequest(run, first_step, num_steps)))

    async def planned(self, run: str, first_step: int, num_steps: int) -> Sequence[Planned]:
        plans, _ = decode_plans(await self._plans(PlansRequest(run, first_step, num_steps, only_made=True)))
        return plans

    async def _plans(self, wanted: PlansRequest) -> bytes:
        """What the owner says to a request for plans; raises what the owner's planner raises."""
        content = json.dumps(wanted.to_dict()).encode()
        answer = await self.request("POST", PLANS_PATH.encode(), self._link.headers(), content)
        if answer.status == HTTPStatus.OK:
            return answer.body
        error = error_of(json.loads(answer.body))
        if error is None:
            raise RuntimeError(f"the owner could not plan: {answer.body.decode()}")
        raise error

    async def close(self) -> None:
        await self._directory.close()


def _check_taken(status: int, headers: Sequence[Header], place: OwnerPlace) -> None:
    """Raises _NotTaken when another process is the owner, and ServiceUnavailable when this one refuses the link."""
    if status < HTTPStatus.BAD_REQUEST:
        return
    refused = said_in(headers, REFUSED_HEADER)
    if refused == b"not-owner":
        raise _NotTaken
    if refused == b"stranger":
        _log.error("the owner does not know this replica: their cluster secrets differ", owner=place.name)
        raise ServiceUnavailable("this replica and the owner of the runs have different secrets (cluster_secret_file)")
    if refused == b"version":
        _log.error("the owner is of a release that does not understand this one", owner=place.name)
        raise ServiceUnavailable("this replica and the owner of the runs are of releases that do not work together")


def _unavailable(error: Exception) -> ServiceUnavailable:
    if isinstance(error, _NotTaken) and error.__cause__ is None:
        return NotOwner("the owner of the runs is changing; ask again in a moment")
    return ServiceUnavailable("the process that owns the runs does not answer; ask again in a moment")
