"""The link between gateways and the owner: what both sides must agree about.

Requests go over HTTP on a Unix socket in a folder that only the service's user can enter. Each bears a secret that the
supervisor made for this service, so that no byte that came from a caller is ever taken for a gateway's word.
"""

import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from starlette.types import Scope

Header = tuple[bytes, bytes]

SECRET_HEADER: Final = b"replay-gateway-secret"
CLIENT_HEADER: Final = b"replay-gateway-client"
"""Of a request that a gateway passes on: the caller's address, its port, and http or https, as a JSON array."""

PLANS_PATH: Final = "/plans"
"""Where a gateway asks for plans on its own behalf, without a CLIENT_HEADER."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where the owner listens, and the secret by which it knows its gateways."""

    path: Path
    secret: str

    def headers(self, scope: Scope | None = None) -> list[Header]:
        """The headers by which the owner knows a gateway, and the caller whose request it passes on."""
        known = [(SECRET_HEADER, self.secret.encode())]
        if scope is None:
            return known
        host, port = scope["client"] or ("unknown", 0)
        return [*known, (CLIENT_HEADER, json.dumps([host, port, scope["scheme"]]).encode())]

    def is_known(self, headers: Sequence[Header]) -> bool:
        """Whether a request bears the secret."""
        given = [value for name, value in headers if name == SECRET_HEADER]
        return len(given) == 1 and hmac.compare_digest(given[0], self.secret.encode())


def caller_in(headers: Sequence[Header]) -> tuple[str, int, str] | None:
    """The address, port and scheme of the caller whose request a gateway passes on; None for a gateway's own."""
    said = next((value for name, value in headers if name == CLIENT_HEADER), None)
    if said is None:
        return None
    host, port, scheme = json.loads(said)
    return host, port, scheme


def without_link(headers: Sequence[Header]) -> list[Header]:
    """Headers without those that only a gateway may send."""
    return [each for each in headers if each[0] not in (SECRET_HEADER, CLIENT_HEADER)]


@dataclass(frozen=True, slots=True)
class PlansRequest:
    """A window of steps of a run; `only_made`: leave out plans that nobody has asked for so far."""

    run: str
    first_step: int
    num_steps: int
    only_made: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
