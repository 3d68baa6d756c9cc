"""The client of the service: typed, synchronous, and patient. It needs neither torch nor Ray."""

import os
import time
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import httpx2
import numpy as np
import stamina

from replay_service.gateway.wire.arrow import (
    ARROW_STREAM,
    CHECKSUM_HEADER,
    Batch,
    Compression,
    checksum,
    decode_batch,
    encode_losses,
)
from trainer.errors import ServiceError, ServiceRefused, ServiceUnavailable
from trainer.refusals import may_pass, refusal
from trainer.transport import CA_FILE_VARIABLE, DeadlineTransport, is_distrust

TOKEN_VARIABLE = "REPLAY_TOKEN"

_LEAST_S: Final = 1.0
"""What an attempt is given at least, seconds, however little time is left."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CorpusInfo:
    """What a trainer must know of a corpus."""

    corpus: str
    tokenizer_fingerprint: str
    separator_id: int
    seq_len: int
    precision: str
    num_samples: int
    topk: int
    """How many of the base model's likeliest tokens are stored of each prediction."""
    kind: str = "language"
    classes: dict[str, Any] | None = None
    """Of a classification corpus: `num_classes`, `model_fingerprint`, `input_shape` and `input_type`."""


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What became of the rows of a report."""

    accepted: int
    duplicate: int
    rejected: int


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to go on trying: waits double from `first_wait_s` to `longest_wait_s`, with jitter.

    Retry-After is honoured, up to `longest_wait_s`. A restart of the service within `give_up_after_s` goes unnoticed.
    No attempt begins later than one wait after `give_up_after_s`, and such a last one is given one second.
    """

    give_up_after_s: float = 300.0
    first_wait_s: float = 0.1
    longest_wait_s: float = 10.0


@dataclass(slots=True)
class ReplayClient:
    """Talks to one service. Every request is safe to repeat, and is repeated until the service answers.

    Nothing hangs for ever, whatever the other side does, and nothing is taken for right whose checksum is not.

    Attributes:
        base_url: such as "http://127.0.0.1:8400" or "https://replay.example.org".
        token: what the service asks callers for; by default the environment variable REPLAY_TOKEN. It is sent, and kept
            nowhere else.
        ca_file: PEM file of the authority that vouches for the service's certificate; by default the environment
            variable REPLAY_CA_FILE, else the authorities that this machine trusts.
        timeout_s: how long one attempt may take, from the connection to the last byte of the answer.
        transport: the seam for tests; None opens sockets.

    Raises, from every method:
        ServiceUnavailable: when there was no answer in time; NotReady when a fenced plan still waits for reports.
        ServiceRefused: when the service said no; RunGone when the run is closed or not there, ServiceUnknown when it
            knows no such corpus, TokenRefused when it asks for another token, NotAllowed when this one is not for it.
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
            transport=self.transport
            or DeadlineTransport(self.base_url, self.ca_file or os.environ.get(CA_FILE_VARIABLE)),
            headers={"Accept-Encoding": "identity", **_authorization(token or os.environ.get(TOKEN_VARIABLE, ""))},
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
        return CorpusInfo(**{name: answer[name] for name in CorpusInfo.__dataclass_fields__ if name in answer})

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
        topk: bool = False,
    ) -> Batch:
        """The samples that `rank` rehearses in a window of steps; none is an answer too: an empty batch.

        `topk` asks for the base model's likeliest tokens too, for distilled rehearsal; the corpus must store them.
        `zstd` compresses what travels: for slow networks, since it costs both sides CPU time.
        """
        window = {
            "step": step,
            "num_steps": num_steps,
            "rank": rank,
            "world_size": world_size,
            "compression": compression,
            **({"topk": True} if topk else {}),
        }

        def read(response: httpx2.Response) -> Batch:
            try:
                batch = decode_batch(response.content)
            except ValueError as error:
                raise ServiceError(f"the service at {self.base_url} sent no batch: {error}") from error
            header = batch.header
            steps = [each.step for each in header.steps]
            if (header.run, header.rank, header.world_size, steps) != (run, rank, world_size, list(asked)):
                raise _Damaged(f"a batch of run {header.run!r} for rank {header.rank} and steps {steps[:1]}...")
            return batch

        asked = range(step, step + num_steps)
        return self._request("POST", f"/v1/runs/{run}/batches", read, json=window, headers={"Accept": ARROW_STREAM})

    def report(self, run: str, rows: np.ndarray) -> ReportResult:
        """Report losses (LOSS_ROW [n]); when this returns they are durable. A row sent twice counts once."""
        headers = {"Content-Type": ARROW_STREAM}
        body = encode_losses(rows).to_pybytes()
        answer = self._json("POST", f"/v1/runs/{run}/losses", content=body, headers=headers)
        return ReportResult(**{name: answer[name] for name in ReportResult.__dataclass_fields__})

    def stats(self, run: str) -> dict[str, Any]:
        """The run's statistics over all strata, as GET /v1/runs/{run}/stats gives them."""
        return self._json("GET", f"/v1/runs/{run}/stats")

    def strata(self, run: str) -> list[dict[str, Any]]:
        """The statistics of each stratum, as GET /v1/runs/{run}/strata gives them."""
        strata: list[dict[str, Any]] = self._json("GET", f"/v1/runs/{run}/strata")["strata"]
        return strata

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return self._request(method, path, _json_of, **options)

    def _request(self, method: str, path: str, read: Callable[[httpx2.Response], T], **options: Any) -> T:
        """What `read` makes of the answer, which has come whole."""
        ends_at = time.monotonic() + self.retry.give_up_after_s
        try:
            for attempt in stamina.retry_context(
                on=self._wait_for,
                attempts=None,
                timeout=self.retry.give_up_after_s,
                wait_initial=self.retry.first_wait_s,
                wait_max=self.retry.longest_wait_s,
            ):
                with attempt:
                    return read(self._answer(method, path, ends_at, options))
        except httpx2.HTTPStatusError as error:
            raise refusal(error.response) from error
        except httpx2.TransportError as error:
            if is_distrust(error):
                raise ServiceError(
                    f"the certificate of the service at {self.base_url} cannot be trusted: {error}; name the file of "
                    f"the authority that vouches for it in the environment variable {CA_FILE_VARIABLE}"
                ) from error
            raise ServiceUnavailable(
                f"the service at {self.base_url} did not answer for {self.retry.give_up_after_s:.0f} s: {error!r}; "
                "check that it runs and can be reached from here"
            ) from error
        raise AssertionError("a retry loop ends with an answer or an error")

    def _answer(self, method: str, path: str, ends_at: float, options: dict[str, Any]) -> httpx2.Response:
        """One attempt: an answer that is right, and as it was sent."""
        if self._http.is_closed:
            raise ServiceError("the client was closed")
        now = time.monotonic()
        deadline = now + min(self.timeout_s, max(ends_at - now, _LEAST_S))
        request = self._http.build_request(method, path, extensions={"deadline": deadline}, **options)
        body = request.read()
        if body:
            request.headers[CHECKSUM_HEADER] = checksum(body)
        response = self._http.send(request)
        promised = response.headers.get(CHECKSUM_HEADER)
        if promised is not None and checksum(response.content) != promised:
            raise _Damaged(f"{len(response.content)} bytes of which not all are right")
        response.raise_for_status()
        if promised is None:
            raise ServiceError(f"{response.url} answered without a checksum; is it a replay service of this release?")
        return response

    def _wait_for(self, error: Exception) -> bool | float:
        """Whether to try again after `error`, or after how many seconds."""
        if self._http.is_closed:
            return False
        if isinstance(error, httpx2.TransportError):
            return not is_distrust(error)
        if not isinstance(error, httpx2.HTTPStatusError) or not may_pass(error.response):
            return False
        after = error.response.headers.get("Retry-After", "")
        return min(float(after), self.retry.longest_wait_s) if after.isdigit() and int(after) else True


class _Damaged(httpx2.TransportError):
    """An answer came that is not what was sent, or not to what was asked."""


def _json_of(response: httpx2.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ServiceError(f"{response.url} answered with no JSON object; is it a replay service?")
    return answer


def _authorization(token: str) -> dict[str, str]:
    """The header that shows a token; none if it is empty. A file's last newline is no part of a token."""
    token = token.strip()
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise ServiceError(f"the token, from the caller or from {TOKEN_VARIABLE}, has characters that no token has")
    return {"Authorization": f"Bearer {token}"}
