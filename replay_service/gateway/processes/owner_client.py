"""A gateway's client of the owner: it passes requests on, and plans as the owner does."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import httpcore2

from replay_service.errors import MalformedRequest, ServiceUnavailable
from replay_service.gateway.processes.link import PLANS_PATH, Header, Link, PlansRequest
from replay_service.gateway.processes.plans import decode_plans, decode_window, error_of
from replay_service.ledger.plan_windows import Window
from replay_service.sampling.events import Planned

OWNER_KEEPS_S: Final = 3600
"""How long the owner keeps a connection that nothing comes on; gateways let them go long before."""
_KEPT_S: Final = 60.0
OWNER_LOST: Final = (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError)
"""Errors of a request to an owner that does not answer, or whose answer breaks off."""
_TIMEOUTS_S: Final = {"connect": 5.0, "read": 120.0, "write": 60.0, "pool": 60.0}


@dataclass(frozen=True, slots=True)
class OwnerResponse:
    """An answer of the owner, whole."""

    status: int
    headers: list[Header]
    body: bytes


class OwnerClient:
    """Requests to the owner. A request goes out with its whole body, whose length is counted here.

    Raises, from every method:
        ServiceUnavailable: when the owner does not answer.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._pool = httpcore2.AsyncConnectionPool(uds=str(link.path), max_connections=None, keepalive_expiry=_KEPT_S)

    async def request(self, method: str, target: bytes, headers: Sequence[Header], body: bytes) -> OwnerResponse:
        """Ask the owner.

        Args:
            headers: without those that frame the body.

        Raises:
            MalformedRequest: when it cannot be put into HTTP/1.1.
        """
        url = httpcore2.URL(scheme=b"http", host=b"owner", port=None, target=target)
        framed = [*headers, (b"content-length", b"%d" % len(body))] if body or method in ("POST", "PATCH") else headers
        try:
            response = await self._pool.request(
                method, url, headers=list(framed), content=body or None, extensions={"timeout": _TIMEOUTS_S}
            )
        except httpcore2.LocalProtocolError as error:
            raise MalformedRequest(f"this is no HTTP/1.1 request: {error}") from error
        except OWNER_LOST as error:
            raise ServiceUnavailable("the process that owns the runs does not answer; ask again in a moment") from error
        return OwnerResponse(
            response.status, [(name.lower(), value) for name, value in response.headers], response.content
        )

    @asynccontextmanager
    async def stream(self, target: bytes, headers: Sequence[Header]) -> AsyncIterator[httpcore2.Response]:
        """Ask the owner for something that comes bit by bit, and does not end by itself."""
        url = httpcore2.URL(scheme=b"http", host=b"owner", port=None, target=target)
        try:
            async with self._pool.stream(
                "GET", url, headers=list(headers), extensions={"timeout": _TIMEOUTS_S}
            ) as response:
                yield response
        except OWNER_LOST as error:
            raise ServiceUnavailable("the process that owns the runs does not answer; ask again in a moment") from error

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
        await self._pool.aclose()
