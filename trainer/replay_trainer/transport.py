"""The seam for tests, a transport of httpx in place of sockets; and which failures of a connection are final."""

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
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
    """Whether a failed connection was the certificate's fault, which stays as it is."""
    return any(isinstance(each, ssl.SSLCertVerificationError) for each in _causes(error))


def is_absence(error: BaseException) -> bool:
    """Whether nobody listens where a connection was tried, or there is no such place."""
    return any(
        isinstance(each, ConnectionRefusedError | socket.gaierror)
        or (isinstance(each, OSError) and each.errno in _UNREACHABLE)
        for each in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
