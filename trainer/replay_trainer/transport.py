"""The seam for tests, a transport of httpx in place of sockets; and which failures of a connection are final."""

import errno
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import httpx2

from replay_trainer.errors import ServiceError
from replay_trainer.http_response import HttpResponse

CA_FILE_VARIABLE = "REPLAY_CA_FILE"

_UNREACHABLE: Final = (errno.EHOSTUNREACH, errno.ENETUNREACH)


class ByTransport:
    """Hands requests to a transport; each has its deadline as the extension `deadline`."""

    def __init__(
        self, base_url: str, headers: Mapping[str, str], transport: httpx2.BaseTransport, timeout_s: float
    ) -> None:
        self._http = httpx2.Client(base_url=base_url, headers=dict(headers), transport=transport, timeout=timeout_s)

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline: float) -> HttpResponse:
        request = self._http.build_request(
            method, quote(path), headers=dict(headers), content=body, extensions={"deadline": deadline}
        )
        answer = self._http.send(request)
        return HttpResponse(str(answer.url), answer.status_code, answer.headers, answer.content)

    def close(self) -> None:
        self._http.close()


def trusted_by(ca_file: Path | str | None) -> ssl.SSLContext:
    """Whose certificates are trusted: those of one authority, or those that the machine trusts."""
    if not ca_file:
        return httpx2.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ServiceError(f"the CA file {ca_file} is no PEM file of certificates: {error}") from error


def is_distrust(error: BaseException) -> bool:
    """Whether a failed connection was the certificate's fault, at every address, which stays as it is."""
    return _is_everywhere(error, lambda each: isinstance(each, ssl.SSLCertVerificationError))


def is_absence(error: BaseException) -> bool:
    """Whether nobody listens at any address that was tried, or there is no such place."""
    return _is_everywhere(
        error,
        lambda each: (
            isinstance(each, ConnectionRefusedError | socket.gaierror)
            or (isinstance(each, OSError) and each.errno in _UNREACHABLE)
        ),
    )


def _is_everywhere(error: BaseException, is_it: Callable[[BaseException], bool]) -> bool:
    """Whether what led to an error is of a kind; where several addresses failed, at each of them."""
    if isinstance(error.__cause__, ExceptionGroup):
        return all(_is_everywhere(each, is_it) for each in error.__cause__.exceptions)
    return any(is_it(each) for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
