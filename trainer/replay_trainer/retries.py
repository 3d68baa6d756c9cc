"""Requests that are repeated until the service answers: how long, how often, and which answers are right."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import httpx2
import structlog

from replay_service.wire.protocol import CHECKSUM_HEADER, checksum
from replay_trainer.errors import ServiceError, ServiceUnavailable
from replay_trainer.http_response import HttpResponse, HttpTransport
from replay_trainer.refusals import StatusError, may_pass, refusal
from replay_trainer.transport import CA_FILE_VARIABLE, is_absence, is_distrust

_CHECKSUM_NAME: Final = CHECKSUM_HEADER.lower()

_FIRST_PATIENCE_S: Final = 15.0
"""Longest first attempt where there are several URLs, seconds; each further attempt may take twice as long."""

_LAST_S: Final = 1.0
"""Time for the last attempt, seconds; a quarter of the whole time, where that is less."""

_log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a request is repeated: waits double from `first_wait_s` to `longest_wait_s`, with jitter.

    Retry-After is honoured, up to `longest_wait_s`. A restart of the service within `give_up_after_s` goes unnoticed.
    A request ends at the latest `give_up_after_s` after its first attempt began; the last attempt begins a second
    earlier.

    A service that never answered this client, and that refuses connections or whose host is unknown, is waited for
    `first_contact_s` only: its URL is probably wrong, or nobody has started it.
    """

    give_up_after_s: float = 300.0
    first_wait_s: float = 0.1
    longest_wait_s: float = 10.0
    first_contact_s: float = 10.0

    def wait_s(self, number: int) -> float:
        """The wait after failure `number`, counted from 0, seconds: doubled each time, and shortened by up to half."""
        longest = min(self.first_wait_s * 2.0 ** min(number, 60), self.longest_wait_s)
        return random.uniform(0.5, 1.0) * longest


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the service, which is safe to repeat."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class DamagedAnswer(httpx2.TransportError):
    """An answer that was changed on its way, or that belongs to another request."""


class RetriedRequests:
    """Sends requests to one service, and repeats each until an answer is right or there is no time left.

    Args:
        way: asks the service once.
        where: name of the service in errors.
        has_several: whether the service has several URLs.
    """

    def __init__(self, way: HttpTransport, where: str, has_several: bool) -> None:
        self.where = where
        self._way = way
        self._has_several = has_several
        self._has_answered = False
        self._is_out = False
        """Whether the outage that goes on is in the log."""
        self._is_closed = False

    def send(self, request: Request, read: Callable[[HttpResponse], T], retry: RetryPolicy, timeout_s: float) -> T:
        """The result of `read` on the answer, which has come whole.

        Args:
            read: may raise a TransportError, after which the request is repeated.
            timeout_s: how long one attempt may take.

        Raises:
            ServiceError: when the service refused, or there is no time left.
        """
        if request.body:
            request = replace(request, headers={**request.headers, CHECKSUM_HEADER: checksum(request.body)})
        began, number = time.monotonic(), 0
        ends_at = began + retry.give_up_after_s
        while True:
            try:
                deadline = min(time.monotonic() + self.patience_s(number, timeout_s), ends_at)
                return read(self.attempt(request, deadline))
            except (StatusError, httpx2.TransportError) as error:
                waited_s = time.monotonic() - began
                wait_s = self._wait_s(error, retry, number, waited_s)
                if wait_s is None:
                    raise self._error_of(error, waited_s) from error
                self._log_once(error)
            time.sleep(wait_s)
            number += 1

    def close(self) -> None:
        """Let go of the connections; requests that are repeated now give up."""
        self._is_closed = True
        self._way.close()

    def attempt(self, request: Request, deadline: float) -> HttpResponse:
        """The answer to one attempt, checked against its checksum.

        Raises:
            StatusError: when its status is none of success.
            httpx2.TransportError: when the connection failed, the deadline has passed, or the answer came damaged.
            ServiceError: when it is no answer of a replay service, or the client was closed.
        """
        if self._is_closed:
            raise ServiceError("the client was closed")
        answer = self._way.ask(request.method, request.path, request.headers, request.body, deadline)
        promised = answer.headers.get(_CHECKSUM_NAME)
        if promised is not None and checksum(answer.content) != promised:
            raise DamagedAnswer(f"{len(answer.content)} bytes of which not all are right")
        self._is_out, self._has_answered = False, self._has_answered or promised is not None
        if not 200 <= answer.status < 300:
            raise StatusError(answer)
        if promised is None:
            raise ServiceError(f"{answer.url} answered without a checksum; is it a replay service of this release?")
        return answer

    def patience_s(self, number: int, timeout_s: float) -> float:
        """How long attempt `number` may take, seconds: less at first where another URL may answer in its place."""
        return min(timeout_s, _FIRST_PATIENCE_S * 2.0**number) if self._has_several else timeout_s

    def _wait_s(
        self, error: StatusError | httpx2.TransportError, retry: RetryPolicy, number: int, waited_s: float
    ) -> float | None:
        """How long to wait before the next attempt, seconds; None: there is none."""
        is_first_contact = not self._has_answered and is_absence(error)
        give_up_after_s = retry.give_up_after_s
        last_s = min(_LAST_S, give_up_after_s / 4)
        limit_s = give_up_after_s - last_s
        left_s = (min(retry.first_contact_s, limit_s) if is_first_contact else limit_s) - waited_s
        if self._is_closed or left_s <= 0 or is_distrust(error):
            return None
        wait_s = retry.wait_s(number)
        if isinstance(error, StatusError):
            if not may_pass(error.answer):
                return None
            after = error.answer.headers.get("retry-after", "")
            if after.isdigit() and int(after):
                wait_s = min(float(after), retry.longest_wait_s)
        return min(wait_s, left_s)

    def _error_of(self, error: StatusError | httpx2.TransportError, waited_s: float) -> ServiceError:
        if isinstance(error, StatusError):
            return refusal(error.answer)
        if is_distrust(error):
            return ServiceError(
                f"the certificate of {self.where} cannot be trusted: {error}; name the file of the authority that "
                f"vouches for it in the environment variable {CA_FILE_VARIABLE}"
            )
        return ServiceUnavailable(
            f"{self.where} did not answer for {waited_s:.0f} s: {error}; check the URL, and that the service runs and "
            "can be reached from here"
        )

    def _log_once(self, error: Exception) -> None:
        """Log an outage once, at its first failure. An answer that says to ask again is no outage."""
        if isinstance(error, httpx2.TransportError) and not self._is_out:
            self._is_out = True
            _log.warning("service_unavailable", service=self.where, error=str(error), hint="asking again")
