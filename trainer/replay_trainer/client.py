"""The client of the service: typed, synchronous, and patient. It needs neither torch nor Ray."""

import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx2
import numpy as np
import structlog

from replay_service.sampling.trained import TrainedCounts
from replay_service.wire.batches import Batch, Compression, decode_batch
from replay_service.wire.decoding import Heads
from replay_service.wire.losses import encode_losses
from replay_service.wire.protocol import ARROW_STREAM, CHECKSUM_HEADER, checksum
from replay_trainer.errors import (
    AnswerTooLarge,
    RunGone,
    ServiceError,
    ServiceRefused,
    ServiceUnavailable,
    ServiceUnknown,
)
from replay_trainer.http_client import HttpClient
from replay_trainer.http_response import HttpResponse, HttpTransport
from replay_trainer.proxies import proxy_to
from replay_trainer.refusals import ATTEMPT_SUPERSEDED, CORPUS_IN_THE_MAKING, StatusError, json_of, may_pass, refusal
from replay_trainer.transport import (
    CA_FILE_VARIABLE,
    ByTransport,
    is_absence,
    is_distrust,
    trusted_by,
)

TOKEN_VARIABLE = "REPLAY_TOKEN"

_CHECKSUM_NAME: Final = CHECKSUM_HEADER.lower()
_LEAST_S: Final = 1.0
"""What an attempt is given at least, seconds, however little time is left."""

_JSON: Final = {"Accept": "*/*", "Content-Type": "application/json"}
_BATCH: Final = {"Accept": ARROW_STREAM, "Content-Type": "application/json"}
_LOSSES: Final = {"Accept": "*/*", "Content-Type": ARROW_STREAM}

_log = structlog.get_logger()

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
    vocab_size: int
    """Token ids lie below it."""
    kind: str = "language"
    classes: dict[str, Any] | None = None
    """Of a classification corpus: `num_classes`, `model_fingerprint`, `input_shape` and `input_type`."""
    bos_id: int | None = None
    """The token that begins a document; None: nothing does."""
    num_strata: int = 0
    """0: an earlier service, which does not tell."""


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
    No attempt begins later than `give_up_after_s`, and the last one is given one second.

    A service that refuses connections, or whose host is unknown, and that never answered this client is waited for
    `first_contact_s` alone: its URL is likely wrong, or nobody started it.
    """

    give_up_after_s: float = 300.0
    first_wait_s: float = 0.1
    longest_wait_s: float = 10.0
    first_contact_s: float = 10.0

    def wait_s(self, number: int) -> float:
        """How long to wait after a number of failures, from 0: twice as long each time, less up to half of it."""
        longest = min(self.first_wait_s * 2.0 ** min(number, 60), self.longest_wait_s)
        return random.uniform(0.5, 1.0) * longest


@dataclass(slots=True)
class ReplayClient:
    """Talks to one service. Every request is safe to repeat, and is repeated until the service answers.

    Nothing hangs for ever, whatever the other side does, and nothing is taken for right whose checksum is not. A forked
    process opens its own connections. A client can be pickled unless it was given its token or a transport.

    Attributes:
        base_url: such as "http://127.0.0.1:8400" or "https://replay.example.org".
        token: what the service asks callers for; by default the environment variable REPLAY_TOKEN. It is sent, and kept
            nowhere else.
        ca_file: PEM file of the authority that vouches for the service's certificate; by default the environment
            variable REPLAY_CA_FILE, else the authorities that this machine trusts.
        timeout_s: how long one attempt may take, from the connection to the last byte of the answer.
        transport: the seam for tests; None opens sockets, or asks by way of the proxy that the environment names.

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
    _way: HttpTransport = field(init=False, repr=False)
    _where: str = field(init=False, repr=False)
    """What errors call the service."""
    _has_token: bool = field(init=False, repr=False)
    _heads: Heads = field(default_factory=Heads, init=False, repr=False)
    _has_answered: bool = field(default=False, init=False, repr=False)
    _is_out: bool = field(default=False, init=False, repr=False)
    """Whether the log has told of the failures that go on."""
    _is_closed: bool = field(default=False, init=False, repr=False)

    def __post_init__(self, token: str | None) -> None:
        self._has_token = bool(token)
        headers = {
            "User-Agent": "replay-trainer",
            "Accept-Encoding": "identity",
            **_authorization(token or os.environ.get(TOKEN_VARIABLE, "")),
        }
        self._way = self._make_way(headers)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._has_token or self.transport is not None:
            raise ServiceError(
                "a client that was given its token or a transport cannot be pickled, since a token is kept nowhere; "
                f"set the environment variable {TOKEN_VARIABLE} and leave the token out, or make a client in each "
                "process"
            )
        return ReplayClient, (self.base_url, None, self.ca_file, self.retry, self.timeout_s)

    def _make_way(self, headers: Mapping[str, str]) -> HttpTransport:
        self._where = f"the service at {_without_user(self.base_url)}"
        if self.transport is not None:
            return ByTransport(self.base_url, headers, self.transport, self.timeout_s)
        trusted = trusted_by(self.ca_file or os.environ.get(CA_FILE_VARIABLE))
        proxy = proxy_to(self.base_url)
        if proxy is not None:
            self._where += f" ({proxy})"
        return HttpClient(self.base_url, headers, trusted, proxy)

    def __enter__(self) -> "ReplayClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._is_closed = True
        self._way.close()

    def corpus(self, corpus: str) -> CorpusInfo:
        """A corpus by name."""
        answer = self._json("GET", f"/v1/corpora/{corpus}")
        if not answer["generation"]:
            raise ServiceRefused(CORPUS_IN_THE_MAKING, _in_the_making(corpus, answer["ingest"]), HTTPStatus.OK)
        return CorpusInfo(**{name: answer[name] for name in CorpusInfo.__dataclass_fields__ if name in answer})

    def ensure_run(self, run: str, corpus: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Create a run, or find it if it is there with the same settings."""
        try:
            return self._json("POST", "/v1/runs", json={"run": run, "corpus": corpus, **settings})
        except ServiceUnknown:
            self._check_in_the_making(corpus)
            raise

    def _check_in_the_making(self, corpus: str) -> None:
        """Raises what `corpus` does where an ingest is making a corpus's first generation."""
        try:
            self.corpus(corpus)
        except ServiceRefused as error:
            if error.slug == CORPUS_IN_THE_MAKING:
                raise

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
        return self._json("POST", f"/v1/runs/{run}/close", json={})

    def finish_run(self, run: str, num_steps: int, attempt: int = 0) -> dict[str, Any]:
        """Say that a job has ended after so many steps; a plan of a later step, or a rewind, takes it back."""
        return self._json("POST", f"/v1/runs/{run}/finish", json={"num_steps": num_steps, "attempt": attempt})

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
        `zstd` compresses what travels: for slow networks, since it costs both sides CPU time. A window that is larger
        than the service's answers may be comes by several requests.
        """
        ask = partial(self._batch, run, rank=rank, world_size=world_size, compression=compression, topk=topk)
        parts: list[Batch] = []
        first, end, most = step, step + num_steps, num_steps
        while first < end or not parts:
            try:
                parts.append(ask(first, num_steps=min(most, end - first)))
                first += most
            except AnswerTooLarge as error:
                if not 0 < error.max_steps < most:
                    raise
                most = error.max_steps
        return _joined(run, parts)

    def _batch(
        self,
        run: str,
        step: int,
        *,
        num_steps: int,
        rank: int,
        world_size: int,
        compression: Compression,
        topk: bool,
    ) -> Batch:
        """The batch of a window, by one request."""
        window = {
            "step": step,
            "num_steps": num_steps,
            "rank": rank,
            "world_size": world_size,
            "compression": compression,
            **({"topk": True} if topk else {}),
        }

        def read(answer: HttpResponse) -> Batch:
            try:
                batch = decode_batch(answer.content, heads=self._heads)
            except ValueError as error:
                raise ServiceError(f"{self._where} sent no batch: {error}") from error
            header = batch.header
            steps = [each.step for each in header.steps]
            if (header.run, header.rank, header.world_size, steps) != (run, rank, world_size, list(asked)):
                raise _Damaged(f"a batch of run {header.run!r} for rank {header.rank} and steps {steps[:1]}...")
            return batch

        asked = range(step, step + num_steps)
        return self._request("POST", f"/v1/runs/{run}/batches", read, _BATCH, _json_bytes(window))

    def report(self, run: str, rows: np.ndarray) -> ReportResult:
        """Report losses (LOSS_ROW [n]); when this returns they are durable. A row sent twice counts once."""
        body = bytes(encode_losses(rows))
        answer = self._request("POST", f"/v1/runs/{run}/losses", _object_of, _LOSSES, body)
        return ReportResult(**{name: answer[name] for name in ReportResult.__dataclass_fields__})

    def report_trained(
        self, run: str, rank: int, first_step: int, next_step: int, counts: TrainedCounts, attempt: int = 0
    ) -> bool:
        """Report what a rank has trained on from `first_step` to before `next_step`; whether it was not counted before.

        When this returns it is durable. A rank reports its steps once, in order.
        """
        steps = {"rank": rank, "first_step": first_step, "next_step": next_step, "attempt": attempt}
        answer = self._json("POST", f"/v1/runs/{run}/trained", json={**steps, **counts._asdict()})
        return bool(answer["counted"])

    def stats(self, run: str) -> dict[str, Any]:
        """The run's statistics over all strata, as GET /v1/runs/{run}/stats gives them."""
        return self._json("GET", f"/v1/runs/{run}/stats")

    def strata(self, run: str) -> list[dict[str, Any]]:
        """The statistics of each stratum, as GET /v1/runs/{run}/strata gives them."""
        strata: list[dict[str, Any]] = self._json("GET", f"/v1/runs/{run}/strata")["strata"]
        return strata

    def _json(
        self, method: str, path: str, json: dict[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        body = b"" if json is None else _json_bytes(json)
        return self._request(method, path, _object_of, {**_JSON, **(headers or {})}, body)

    def _request(
        self, method: str, path: str, read: Callable[[HttpResponse], T], headers: Mapping[str, str], body: bytes
    ) -> T:
        """What `read` makes of the answer, which has come whole."""
        if body:
            headers = {**headers, CHECKSUM_HEADER: checksum(body)}
        began, number = time.monotonic(), 0
        ends_at = began + self.retry.give_up_after_s
        while True:
            try:
                return read(self._answer(method, path, headers, body, ends_at))
            except (StatusError, httpx2.TransportError) as error:
                waited_s = time.monotonic() - began
                wait_s = self._wait_s(error, number, waited_s)
                if wait_s is None:
                    raise self._error_of(error, waited_s) from error
                self._log_once(error)
            time.sleep(wait_s)
            number += 1

    def _error_of(self, error: StatusError | httpx2.TransportError, waited_s: float) -> ServiceError:
        if isinstance(error, StatusError):
            return refusal(error.answer)
        if is_distrust(error):
            return ServiceError(
                f"the certificate of {self._where} cannot be trusted: {error}; name the file of the authority that "
                f"vouches for it in the environment variable {CA_FILE_VARIABLE}"
            )
        return ServiceUnavailable(
            f"{self._where} did not answer for {waited_s:.0f} s: {error}; check the URL, and that the service runs and "
            "can be reached from here"
        )

    def _log_once(self, error: Exception) -> None:
        """Tell of an outage at its first failure. An answer that says to ask again is none."""
        if isinstance(error, httpx2.TransportError) and not self._is_out:
            self._is_out = True
            _log.warning("service_unavailable", service=self._where, error=str(error), hint="asking again")

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes, ends_at: float) -> HttpResponse:
        """One attempt: an answer that is right, and as it was sent."""
        if self._is_closed:
            raise ServiceError("the client was closed")
        now = time.monotonic()
        deadline = now + min(self.timeout_s, max(ends_at - now, _LEAST_S))
        answer = self._way.ask(method, path, headers, body, deadline)
        promised = answer.headers.get(_CHECKSUM_NAME)
        if promised is not None and checksum(answer.content) != promised:
            raise _Damaged(f"{len(answer.content)} bytes of which not all are right")
        self._is_out, self._has_answered = False, self._has_answered or promised is not None
        if not 200 <= answer.status < 300:
            raise StatusError(answer)
        if promised is None:
            raise ServiceError(f"{answer.url} answered without a checksum; is it a replay service of this release?")
        return answer

    def _wait_s(self, error: StatusError | httpx2.TransportError, number: int, waited_s: float) -> float | None:
        """How long to wait before the next attempt; None: there is none."""
        is_first_contact = not self._has_answered and is_absence(error)
        give_up_after_s = self.retry.give_up_after_s
        left_s = (min(self.retry.first_contact_s, give_up_after_s) if is_first_contact else give_up_after_s) - waited_s
        if self._is_closed or left_s <= 0 or is_distrust(error):
            return None
        wait_s = self.retry.wait_s(number)
        if isinstance(error, StatusError):
            if not may_pass(error.answer):
                return None
            after = error.answer.headers.get("retry-after", "")
            if after.isdigit() and int(after):
                wait_s = min(float(after), self.retry.longest_wait_s)
        return min(wait_s, left_s)


def _joined(run: str, parts: Sequence[Batch]) -> Batch:
    """Batches of adjacent windows as one; raises RunGone when the run was rewound between them."""
    if any(part.header.attempt != parts[0].header.attempt for part in parts):
        raise RunGone(ATTEMPT_SUPERSEDED, f"run {run!r} was rewound while a window of it was fetched", HTTPStatus.OK)
    return parts[0] if len(parts) == 1 else Batch.joined(parts)


class _Damaged(httpx2.TransportError):
    """An answer came that is not what was sent, or not to what was asked."""


def _object_of(answer: HttpResponse) -> dict[str, Any]:
    try:
        found = json_of(answer)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ServiceError(f"{answer.url} answered with no JSON object; is it a replay service?")
    return found


def _json_bytes(asked: dict[str, Any]) -> bytes:
    return json.dumps(asked, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _in_the_making(corpus: str, ingest: Mapping[str, Any]) -> str:
    """That a corpus cannot be rehearsed from yet, and how far its ingest is."""
    left = "" if ingest.get("seconds_left") is None else f", about {ingest['seconds_left']:.0f} s left"
    advice = "train when it has its first generation" if ingest["state"] == "running" else "start the ingest again"
    problem = f": {ingest['problem']}" if ingest.get("problem") else ""
    return (
        f"corpus {corpus!r} has no generation yet; its ingest is {ingest['state']}{problem} "
        f"({ingest['num_rows']:,} rows scored, {ingest['shards_done']} of {ingest['num_shards']} shards, "
        f"{ingest['share_done']:.0%} of their bytes{left}); {advice}"
    )


def _authorization(token: str) -> dict[str, str]:
    """The header that shows a token; none if it is empty. A file's last newline is no part of a token."""
    token = token.strip()
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise ServiceError(f"the token, from the caller or from {TOKEN_VARIABLE}, has characters that no token has")
    return {"Authorization": f"Bearer {token}"}
