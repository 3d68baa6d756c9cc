"""A small client of a service's JSON routes, for commands. It asks once, and says plainly what went wrong."""

import difflib
import json
import os
import re
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

import httpx2

from replay_service.cli.operators.words import visible
from replay_service.errors import ReplayError
from replay_service.names import NAME_RULE, is_name

DEFAULT_URL: Final = "http://127.0.0.1:8400"
TOKEN_VARIABLE: Final = "REPLAY_TOKEN"
CA_FILE_VARIABLE: Final = "REPLAY_CA_FILE"

_TIMEOUT_S: Final = 30.0
_CONNECT_S: Final = 3.0
_PROBLEM_TYPE: Final = "urn:replay-service:problem:"
_PAGE: Final = 1000
_RETRY_S: Final = 1.0
_LOST_S: Final = 60.0
"""How long a service that was followed may be away."""


class UnusableAddress(ReplayError):
    slug, title = "unusable-address", "The service cannot be asked"


class NoAnswer(ReplayError):
    slug, title = "no-answer", "The service does not answer"


class ServiceSaysNo(ReplayError):
    """The service has answered with a problem; `kind` is its slug."""

    slug, title = "refused", "The service says no"

    def __init__(self, detail: str, kind: str = "") -> None:
        super().__init__(detail)
        self.kind = kind


class ServiceClient:
    """Asks one service, at whichever of its URLs can be reached.

    Args:
        url: of the service; several have commas between them.
        token: what it asks callers for; None for no token.
        ca_file: PEM file of the authority that vouches for its certificate; None for those that this machine trusts.

    Raises, from every method:
        NoAnswer: when no answer came.
        ServiceSaysNo: when the service refused.
    """

    def __init__(self, url: str, token: str | None = None, ca_file: Path | None = None) -> None:
        urls = [each.strip().rstrip("/") for each in url.split(",")]
        self._where = f"the service at {_without_user(', '.join(urls))}"
        headers = {"Accept": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        for each in urls:
            _check_url(each)
        trusted = True if ca_file is None else _trusting(ca_file)
        timeout = httpx2.Timeout(_TIMEOUT_S, connect=_CONNECT_S)
        self._clients = deque(
            httpx2.Client(base_url=each, headers=headers, timeout=timeout, verify=trusted) for each in urls
        )

    def __enter__(self) -> "ServiceClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._clients:
            each.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """The answer to a GET; keys of the query that are None are left out."""
        return self._ask("GET", path, params={name: value for name, value in query.items() if value is not None})

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._ask("PATCH", path, json=body)

    def of_run(self, run: str, path: str = "", **query: Any) -> dict[str, Any]:
        """The answer to a GET about a run; of one that is not there, the nearest names are said."""
        return self._named("run", run, self.run_names, lambda: self.get(run_path(run, path), **query))

    def of_corpus(self, corpus: str) -> dict[str, Any]:
        """The answer to a GET about a corpus; of one that is not there, the nearest names are said."""
        return self._named("corpus", corpus, self.corpus_names, lambda: self.get(f"/v1/corpora/{quote(corpus, '')}"))

    def runs(self, **query: Any) -> Iterator[dict[str, Any]]:
        """All runs that the caller may see, by name."""
        after = ""
        while True:
            page = self.get("/v1/runs", limit=_PAGE, after=after, **query)
            yield from page["runs"]
            if page["next"] is None:
                return
            after = page["next"]

    def follow(self, run: str, after: int, kind: str | None) -> Iterator[dict[str, Any]]:
        """The events of a run after a number, as they happen, for ever. A service that restarts is asked again."""
        lost_at: float | None = None
        while True:
            try:
                for event in self._stream(run_path(run, "/events"), {"after": after, "kind": kind}):
                    lost_at, after = None, event["seq"]
                    yield event
            except httpx2.TransportError as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > _LOST_S:
                    raise NoAnswer(self._problem_of(error)) from error
                self._clients.rotate(-1)
            time.sleep(_RETRY_S)

    def _stream(self, path: str, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The server-sent events of one answer, each with its kind."""
        params = {name: value for name, value in query.items() if value is not None}
        headers = {"Accept": "text/event-stream"}
        with self._clients[0].stream("GET", path, params=params, headers=headers) as answer:
            if not answer.is_success:
                answer.read()
                raise self._refusal(answer)
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = value.removeprefix(" ")
                elif "data" in fields:
                    yield {"kind": fields.get("event", ""), **json.loads(fields.pop("data"))}

    def run_names(self) -> list[str]:
        return [each["run"] for each in self.runs()]

    def corpus_names(self) -> list[str]:
        return [each["corpus"] for each in self.get("/v1/corpora")["corpora"]]

    def _named(
        self, what: str, name: str, names: Callable[[], list[str]], ask: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        if not is_name(name):
            raise ServiceSaysNo(f"{name!r} is no name of a {what}: {NAME_RULE}")
        try:
            return ask()
        except ServiceSaysNo as error:
            if error.kind != f"unknown-{what}":
                raise
            raise ServiceSaysNo(unknown(what, name, names()), error.kind) from error

    def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            answer = self._answer(method, path, **more)
        except httpx2.TransportError as error:
            raise NoAnswer(self._problem_of(error)) from error
        if not answer.is_success:
            raise self._refusal(answer)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ServiceSaysNo(f"{self._where} sent no JSON object: that is no replay service")
        return found

    def _answer(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """The answer of the first URL that can be reached, which is asked first from then on."""
        for _ in range(len(self._clients) - 1):
            try:
                return self._clients[0].request(method, path, **more)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                self._clients.rotate(-1)
        return self._clients[0].request(method, path, **more)

    def _problem_of(self, error: httpx2.TransportError) -> str:
        if isinstance(error, httpx2.TimeoutException):
            return f"{self._where} has not answered within {_TIMEOUT_S:g} s; try again, or see what its /readyz says"
        if _is_distrust(error):
            return (
                f"the certificate of {self._where} is not trusted: {error}; name its authority's PEM file by the "
                f"environment variable {CA_FILE_VARIABLE}"
            )
        return f"{self._where} cannot be reached: {error}; is it running, and is that its URL (--url, REPLAY_URL)?"

    def _refusal(self, answer: httpx2.Response) -> ServiceSaysNo:
        problem = _problem_in(answer)
        if problem is None:
            moved = f", and points to {answer.headers['location']}" if "location" in answer.headers else ""
            return ServiceSaysNo(f"{self._where} answers HTTP {answer.status_code}{moved}: that is no replay service")
        kind = str(problem["type"]).removeprefix(_PROBLEM_TYPE)
        if kind == "missing-token":
            return ServiceSaysNo(
                f"{self._where} asks for a token: name a file that holds one by --token-file, or set {TOKEN_VARIABLE}",
                kind,
            )
        advice = "; see --token-file and REPLAY_TOKEN" if answer.status_code == HTTPStatus.UNAUTHORIZED else ""
        return ServiceSaysNo(visible(f"{problem['detail']}{advice}"), kind)


def run_path(run: str, path: str = "") -> str:
    return f"/v1/runs/{quote(run, '')}{path}"


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """A sentence that names what is nearest to a name that is not there."""
    near = [repr(each) for each in difflib.get_close_matches(name, known, n=3, cutoff=0.5)]
    if near:
        return f"there is no {what} {name!r}; the nearest {'is' if len(near) == 1 else 'are'} {', '.join(near)}"
    if not known:
        return f"there is no {what} {name!r}, and no other one that you may see"
    some = ", ".join(map(repr, known[:5])) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
    return f"there is no {what} {name!r}; {'there is' if len(known) == 1 else 'there are'} {some}"


def read_token(path: Path | None) -> str | None:
    """The token in a file, by default that of the environment; None where neither has one.

    Raises:
        UnusableAddress: when the file holds no token.
        FileNotFoundError: when it is not there.
    """
    if path is None:
        text, source = os.environ.get(TOKEN_VARIABLE, ""), f"the environment variable {TOKEN_VARIABLE}"
    else:
        text, source = _content(path), str(path)
    token = text.strip()
    if path is None and not token:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise UnusableAddress(
            f"{source} holds no token: one line is wanted, as `replay-service token create` prints it"
        )
    return token


def _content(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"there is no token file {path}")
    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise UnusableAddress(f"the token file {path} is no text") from None
    except OSError as error:
        raise UnusableAddress(f"the token file {path} cannot be read: {error.strerror}") from error


def _check_url(url: str) -> None:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UnusableAddress(f"{url!r} is no URL: {error}; write one such as {DEFAULT_URL}") from error
    is_plain = parsed.scheme in ("http", "https") and parsed.host and not parsed.query and not parsed.fragment
    if not is_plain or not 0 < (parsed.port or 80) < 1 << 16:
        raise UnusableAddress(f"{_without_user(url)!r} is no URL of a service; write one such as {DEFAULT_URL}")


def _without_user(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def _trusting(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise UnusableAddress(
            f"{ca_file} ({CA_FILE_VARIABLE}) is no PEM file of certificates: {error.strerror or error}"
        ) from error


def _is_distrust(error: BaseException) -> bool:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLCertVerificationError):
            return True
        found = found.__cause__ or found.__context__
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def _problem_in(answer: httpx2.Response) -> dict[str, Any] | None:
    """The problem document of an answer (RFC 9457); None where another server answers."""
    try:
        found = answer.json()
    except ValueError:
        return None
    is_problem = isinstance(found, dict) and str(found.get("type", "")).startswith(_PROBLEM_TYPE) and "detail" in found
    return found if is_problem else None
