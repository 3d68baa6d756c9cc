"""The client of the service: typed, synchronous, and patient. It needs neither torch nor Ray."""

import os
import ssl
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import numpy as np
import stamina

from replay_service.gateway.wire import ARROW_STREAM, Batch, Compression, decode_batch, encode_losses
from trainer.errors import (
    NotAllowed,
    NotReady,
    ServiceError,
    ServiceRefused,
    ServiceUnavailable,
    ServiceUnknown,
    TokenRefused,
)

PROBLEM_JSON = "application/problem+json"
TOKEN_VARIABLE = "REPLAY_TOKEN"
CA_FILE_VARIABLE = "REPLAY_CA_FILE"

_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class CorpusInfo:
    """What a trainer must know of a corpus."""

    corpus: str
    tokenizer_fingerprint: str
    separator_id: int
    seq_len: int
    precision: str
    num_samples: int


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What became of the rows of a report."""

    accepted: int
    duplicate: int
    rejected: int


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to go on trying: waits double from `first_wait_s` to `longest_wait_s`, with jitter.

    Retry-After is honoured. A restart of the service within `give_up_after_s` goes unnoticed.
    """

    give_up_after_s: float = 300.0
    first_wait_s: float = 0.1
    longest_wait_s: float = 10.0


@dataclass(slots=True)
class ReplayClient:
    """Talks to one service. Every request is safe to repeat, and is repeated until the service answers.

    Attributes:
        base_url: such as "http://127.0.0.1:8400" or "https://replay.example.org".
        token: what the service asks callers for; by default the environment variable REPLAY_TOKEN. It is sent, and kept
            nowhere else.
        ca_file: PEM file of the authority that vouches for the service's certificate; by default the environment
            variable REPLAY_CA_FILE, else the authorities that this machine trusts.
        transport: the seam for tests; None opens sockets.

    Raises, from every method:
        ServiceUnavailable: when there was no answer in time; NotReady when a fenced plan still waits for reports.
        ServiceRefused: when the service said no; ServiceUnknown when it knows no such run or corpus, TokenRefused when
            it asks for another token, NotAllowed when the token is not for this.
        ServiceError: when the service's certificate cannot be trusted, or what it sent cannot be understood.
    """

    base_url: str
    token: InitVar[str | None] = None
    ca_file: Path | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout_s: float = 60.0
    transport: httpx2.BaseTransport | None = None
    _http: httpx2.Client = field(init=False, repr=False)

    def __post_init__(self, token: str | None) -> None:
        self._http = httpx2.Client(
            base_url=self.base_url,
            timeout=self.timeout_s,
            transport=self.transport,
            headers=_authorization(token or os.environ.get(TOKEN_VARIABLE, "")),
            verify=_trusted(self.ca_file or os.environ.get(CA_FILE_VARIABLE)),
        )

    def __enter__(self) -> "ReplayClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def corpus(self, corpus: str) -> CorpusInfo:
        """A corpus by name."""
        answer = self._json("GET", f"/v1/corpora/{corpus}")
        if not answer["generation"]:
            state = answer["ingest"]["state"]
            detail = f"corpus {corpus!r} has no generation yet (its ingest is {state}); train when it has one"
            raise ServiceRefused("corpus-in-the-making", detail, 200)
        return CorpusInfo(**{name: answer[name] for name in CorpusInfo.__dataclass_fields__})

    def ensure_run(self, run: str, corpus: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Create a run, or find it if it is there with the same settings."""
        return self._json("POST", "/v1/runs", json={"run": run, "corpus": corpus, **settings})

    def run(self, run: str) -> dict[str, Any]:
        """A run, its configuration and how far it is, as GET /v1/runs/{run} gives it."""
        return self._json("GET", f"/v1/runs/{run}")

    def configure(self, run: str, **changes: Any) -> dict[str, Any]:
        """Change how a run samples, from its first step that has no plan yet."""
        return self._json("PATCH", f"/v1/runs/{run}", json=changes)

    def rewind(self, run: str, step: int) -> dict[str, Any]:
        """Go back to the state that a run had after `step`; -1 is the beginning. A new attempt begins."""
        return self._json("POST", f"/v1/runs/{run}/rewind", json={"step": step})

    def close_run(self, run: str) -> dict[str, Any]:
        """Plan no further step of a run."""
        return self._json("POST", f"/v1/runs/{run}/close")

    def batch(
        self,
        run: str,
        step: int,
        *,
        num_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        compression: Compression = "none",
    ) -> Batch:
        """The samples that `rank` rehearses in a window of steps; none is an answer too.

        `zstd` compresses what travels: for slow networks, since it costs both sides CPU time.
        """
        window = {
            "step": step,
            "num_steps": num_steps,
            "rank": rank,
            "world_size": world_size,
            "compression": compression,
        }
        response = self._request("POST", f"/v1/runs/{run}/batches", json=window, headers={"Accept": ARROW_STREAM})
        try:
            return decode_batch(response.content)
        except ValueError as error:
            raise ServiceError(f"the service at {self.base_url} sent no batch: {error}") from error

    def report(self, run: str, rows: np.ndarray) -> ReportResult:
        """Report losses (LOSS_ROW [n]); when this returns they are durable. A row sent twice counts once."""
        headers = {"Content-Type": ARROW_STREAM}
        body = encode_losses(rows).to_pybytes()
        answer = self._request("POST", f"/v1/runs/{run}/losses", content=body, headers=headers)
        return ReportResult(**answer.json())

    def stats(self, run: str) -> dict[str, Any]:
        """The run's statistics over all strata, as GET /v1/runs/{run}/stats gives them."""
        return self._json("GET", f"/v1/runs/{run}/stats")

    def strata(self, run: str) -> list[dict[str, Any]]:
        """The statistics of each stratum, as GET /v1/runs/{run}/strata gives them."""
        strata: list[dict[str, Any]] = self._json("GET", f"/v1/runs/{run}/strata")["strata"]
        return strata

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._request(method, path, **options).json()
        return answer

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            for attempt in stamina.retry_context(
                on=_wait_for,
                attempts=None,
                timeout=self.retry.give_up_after_s,
                wait_initial=self.retry.first_wait_s,
                wait_max=self.retry.longest_wait_s,
            ):
                with attempt:
                    response = self._http.request(method, path, **options)
                    response.raise_for_status()
                    return response
        except httpx2.HTTPStatusError as error:
            raise _refusal(error.response) from error
        except httpx2.TransportError as error:
            if _is_distrust(error):
                raise ServiceError(
                    f"the certificate of the service at {self.base_url} cannot be trusted: {error}; name the file of "
                    f"the authority that vouches for it in the environment variable {CA_FILE_VARIABLE}"
                ) from error
            raise ServiceUnavailable(
                f"the service at {self.base_url} did not answer for {self.retry.give_up_after_s:.0f} s: {error!r}; "
                "check that it runs and can be reached from here"
            ) from error
        raise AssertionError("a retry loop ends with an answer or an error")


def _authorization(token: str) -> dict[str, str]:
    """The header that shows a token; none if it is empty. A file's last newline is no part of a token."""
    token = token.strip()
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise ServiceError(f"the token, from the caller or from {TOKEN_VARIABLE}, has characters that no token has")
    return {"Authorization": f"Bearer {token}"}


def _trusted(ca_file: Path | str | None) -> ssl.SSLContext | bool:
    """Whose certificates are trusted: those of one authority, or (True) those that the machine trusts."""
    if not ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ServiceError(f"the CA file {ca_file} is no PEM file of certificates: {error}") from error


def _is_distrust(error: BaseException | None) -> bool:
    """Whether a failed connection was the certificate's fault, which stays as it is."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _wait_for(error: Exception) -> bool | float:
    """Whether to try again after `error`, or after how many seconds."""
    if isinstance(error, httpx2.TransportError):
        return not _is_distrust(error)
    if not isinstance(error, httpx2.HTTPStatusError) or error.response.status_code not in _RETRIED_STATUSES:
        return False
    after = error.response.headers.get("Retry-After", "")
    return float(after) if after.isdigit() and int(after) else True


def _refusal(response: httpx2.Response) -> ServiceError:
    if response.headers.get("Content-Type") == PROBLEM_JSON and _slug(response) == "awaiting-reports":
        return NotReady(str(response.json()["detail"]))
    if response.status_code in _RETRIED_STATUSES:
        return ServiceUnavailable(f"the service at {response.url} kept failing: HTTP {response.status_code}")
    try:
        slug, detail = _slug(response), str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        slug, detail = "unknown-answer", f"{response.url} answered with no problem document; is it a replay service?"
    return _kind(slug, response.status_code)(slug, detail, response.status_code)


def _kind(slug: str, status: int) -> type[ServiceRefused]:
    if slug in ("unknown-run", "unknown-corpus"):
        return ServiceUnknown
    return {401: TokenRefused, 403: NotAllowed}.get(status, ServiceRefused)


def _slug(response: httpx2.Response) -> str:
    """The stable name of a problem."""
    return str(response.json()["type"]).rpartition(":")[2]
