"""What a service answers, and who asks it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer that has come whole.

    Attributes:
        url: what was asked, to be shown: without whatever the URL says of a user, and with the proxy, if one was asked.
        status: of HTTP.
        headers: those that a client looks at, by their names in small letters.
        content: the body as it came.
        by: the proxy that was asked, in parentheses after a space, to be shown after a sentence; empty without one.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    content: bytes | memoryview
    by: str = ""


class HttpTransport(Protocol):
    """A way to the service, for requests of any number of threads at once."""

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline: float) -> HttpResponse:
        """The answer to one request, which is over at `deadline`, a time of `time.monotonic`, whatever comes.

        Raises:
            httpx2.TransportError: when the connection failed, or the deadline has passed.
        """

    def close(self) -> None:
        """Let go of all connections."""
