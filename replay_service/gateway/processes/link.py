"""The link between gateways and the owner: what both sides must agree about.

Requests go over HTTP: on one machine through a Unix socket in a folder that only the service's user can enter, in a
cluster over TCP. Each bears a secret, so that no byte that came from a caller is ever taken for a gateway's word. On
one machine the supervisor makes the secret; in a cluster all replicas are given the same one.
"""

import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from starlette.types import Scope

Header = tuple[bytes, bytes]

SECRET_HEADER: Final = b"replay-gateway-secret"
CLIENT_HEADER: Final = b"replay-gateway-client"
"""Of a request that a gateway passes on: the caller's address, its port, and http or https, as a JSON array."""

EPOCH_HEADER: Final = b"replay-gateway-epoch"
"""The epoch of the lease under which a gateway takes the process that it asks for the owner."""

VERSION_HEADER: Final = b"replay-gateway-version"
VERSION: Final = b"1"
"""Of what gateways and owners say to each other; a change of it is one of this number."""

REFUSED_HEADER: Final = b"replay-link-refused"
"""Of an answer to a gateway whose request was not looked at: not-owner, stranger or version."""

PLANS_PATH: Final = "/plans"
"""Where a gateway asks for plans on its own behalf, without a CLIENT_HEADER."""

OWNER_PATH: Final = "/owner"
"""Where a gateway asks its own replica's candidate who the owner is (GET), or says that callers miss it (POST)."""

OF_EACH_REPLICA: Final = frozenset(["/healthz", "/metrics", "/readyz"])
"""Paths that each replica answers for itself, whoever owns the runs."""


@dataclass(frozen=True, slots=True)
class Link:
    """The secret by which an owner knows its gateways."""

    secret: str

    def headers(self, scope: Scope | None = None) -> list[Header]:
        """The headers by which the owner knows a gateway, and the caller whose request it passes on."""
        known = [(SECRET_HEADER, self.secret.encode()), (VERSION_HEADER, VERSION)]
        if scope is None:
            return known
        host, port = scope["client"] or ("unknown", 0)
        return [*known, (CLIENT_HEADER, json.dumps([host, port, scope["scheme"]]).encode())]

    def is_known(self, headers: Sequence[Header]) -> bool:
        """Whether a request bears the secret."""
        given = [value for name, value in headers if name == SECRET_HEADER]
        return len(given) == 1 and hmac.compare_digest(given[0], self.secret.encode())


def said_in(headers: Sequence[Header], wanted: bytes) -> bytes | None:
    """The value of the first header of a name."""
    return next((value for name, value in headers if name == wanted), None)


def caller_in(headers: Sequence[Header]) -> tuple[str, int, str]:
    """The address, port and scheme of the caller whose request a gateway passes on, in a CLIENT_HEADER."""
    host, port, scheme = json.loads(said_in(headers, CLIENT_HEADER) or b"")
    return host, port, scheme


def without_link(headers: Sequence[Header]) -> list[Header]:
    """Headers without those that only a gateway may send."""
    return [each for each in headers if each[0] not in _OF_GATEWAYS]


_OF_GATEWAYS: Final = frozenset([SECRET_HEADER, CLIENT_HEADER, EPOCH_HEADER, VERSION_HEADER])


@dataclass(frozen=True, slots=True)
class PlansRequest:
    """A window of steps of a run; `only_made`: leave out plans that nobody has asked for so far."""

    run: str
    first_step: int
    num_steps: int
    only_made: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
