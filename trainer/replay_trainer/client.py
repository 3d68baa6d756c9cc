"""The client of the service: typed and synchronous. It repeats requests, and needs neither torch nor Ray."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import InitVar, dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import httpx2
import numpy as np

from replay_service.sampling.trained import TrainedCounts
from replay_service.wire.batches import Batch, Compression, decode_batch
from replay_service.wire.decoding import Heads
from replay_service.wire.losses import encode_losses
from replay_service.wire.protocol import ARROW_STREAM
from replay_trainer.corpus_info import CorpusInfo, in_the_making
from replay_trainer.errors import (
    AnswerTooLarge,
    RunGone,
    ServiceError,
    ServiceRefused,
    ServiceUnknown,
)
from replay_trainer.http_client import HttpClient
from replay_trainer.http_response import HttpResponse
from replay_trainer.proxies import proxy_to
from replay_trainer.refusals import ATTEMPT_SUPERSEDED, CORPUS_IN_THE_MAKING, json_of
from replay_trainer.retries import DamagedAnswer, Request, RetriedRequests, RetryPolicy
from replay_trainer.routes import Route
from replay_trainer.service_urls import service_urls, shown_urls
from replay_trainer.transport import CA_FILE_VARIABLE, ByTransport, trusted_by

__all__ = ["TOKEN_VARIABLE", "CorpusInfo", "ReplayClient", "ReportResult", "RetryPolicy"]

TOKEN_VARIABLE = "REPLAY_TOKEN"

_JSON: Final = {"Accept": "*/*", "Content-Type": "application/json"}
_BATCH: Final = {"Accept": ARROW_STREAM, "Content-Type": "application/json"}
_LOSSES: Final = {"Accept": "*/*", "Content-Type": ARROW_STREAM}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReportResult:
    """How many rows of a report the service accepted, had counted before, and rejected."""

    accepted: int
    duplicate: int
    rejected: int


@dataclass(slots=True)
class ReplayClient:
    """Talks to one service. Every request is safe to repeat, and is repeated until the service answers.

    Every call ends in time, whatever the other side does. An answer with a wrong checksum is never used. A forked
    process opens its own connections. A client can be pickled unless it was given its token or a transport.

    Attributes:
        base_url: such as "http://127.0.0.1:8400" or "https://replay.example.org". Several URLs of one service are a
            list, or have commas between them; a name may have several addresses. When an address fails, the next one is
            asked; the address that answered last is asked first.
        token: the caller's token, where the service asks for one; by default the environment variable REPLAY_TOKEN. It
            is kept nowhere but in the requests.
        ca_file: PEM file of the authority that vouches for the service's certificate; by default the environment
            variable REPLAY_CA_FILE, else the authorities that this machine trusts.
        timeout_s: how long one attempt may take, from the connection to the last byte of the answer. With several URLs
            the first attempts may take less, since another URL may answer where a host is paused.
        transport: for tests; None opens sockets, or uses the proxy that the environment names.

    Raises, from every method:
        ServiceUnavailable: when there was no answer in time; NotReady when a fenced plan still waits for reports.
        ServiceRefused: when the service said no; RunGone when the run is closed or not there, ServiceUnknown when it
            knows no such corpus, TokenRefused when it asks for another token, NotAllowed when this one is not for it.
        ServiceError: when the service's certificate cannot be trusted, or what it sent cannot be understood.
    """

    base_url: str | Sequence[str]
    token: InitVar[str | None] = None
    ca_file: Path | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout_s: float = 60.0
    transport: httpx2.BaseTransport | None = None
    _requests: RetriedRequests = field(init=False, repr=False)
    _has_token: bool = field(init=False, repr=False)
    _heads: Heads = field(default_factory=Heads, init=False, repr=False)

    def __post_init__(self, token: str | None) -> None:
        self._has_token = bool(token)
        headers = {
            "User-Agent": "replay-trainer",
            "Accept-Encoding": "identity",
            **_authorization(token or os.environ.get(TOKEN_VARIABLE, "")),
        }
        self._requests = self._requests_with(headers)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._has_token or self.transport is not None:
            raise ServiceError(
                "a client that was given its token or a transport cannot be pickled, since a token is kept nowhere; "
                f"set the environment variable {TOKEN_VARIABLE} and leave the token out, or make a client in each "
                "process"
            )
        return ReplayClient, (self.base_url, None, self.ca_file, self.retry, self.timeout_s)

    def with_retry(self, retry: RetryPolicy) -> "ReplayClient":
        """This client with another policy of repeating requests. Both share connections, which the first one closes."""
        found: ReplayClient = object.__new__(ReplayClient)
        for name in ReplayClient.__slots__:
            setattr(found, name, getattr(self, name))
        found.retry, found._requests = retry, copy(self._requests)
        return found

    def _requests_with(self, headers: Mapping[str, str]) -> RetriedRequests:
        urls = service_urls(self.base_url)
        where, has_several = f"the service at {shown_urls(urls)}", len(urls) > 1
        if self.transport is not None:
            return RetriedRequests(ByTransport(urls[0], headers, self.transport, self.timeout_s), where, has_several)
        trusted = trusted_by(self.ca_file or os.environ.get(CA_FILE_VARIABLE))
        routes = [Route.to(url, headers, trusted, proxy_to(url)) for url in urls]
        where += "".join(dict.fromkeys(route.by for route in routes))
        return RetriedRequests(HttpClient(routes), where, has_several)

    def __enter__(self) -> "ReplayClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._requests.close()

    def corpus(self, corpus: str) -> CorpusInfo:
        """A corpus by name."""
        answer = self._json("GET", f"/v1/corpora/{corpus}")
        if not answer["generation"]:
            raise ServiceRefused(CORPUS_IN_THE_MAKING, in_the_making(corpus, answer["ingest"]), HTTPStatus.OK)
        return CorpusInfo(**{name: answer[name] for name in CorpusInfo.__dataclass_fields__ if name in answer})

    def ensure_run(self, run: str, corpus: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Create a run, or find it if it is there with the same settings."""
        try:
            return self._json("POST", "/v1/runs", json={"run": run, "corpus": corpus, **settings})
        except ServiceUnknown:
            self._check_in_the_making(corpus)
            raise

    def _check_in_the_making(self, corpus: str) -> None:
        """Raises ServiceRefused, as `corpus` does, while an ingest is making a corpus's first generation."""
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
        """Say that a job has ended after `num_steps` steps; a plan of a later step, or a rewind, takes it back."""
        return self._json("POST", f"/v1/runs/{run}/finish", json={"num_steps": num_steps, "attempt": attempt})

    def claim(self, run: str, job: str, *, take_over: bool = False) -> float:
        """Say that a job uses a run. The result is how long the claim is valid unless it is renewed, seconds.

        Raises:
            RunInUse: when another job uses it, unless `take_over` takes it from that job.
            RunGone: when another job has taken it from this one.
        """
        answer = self._json("POST", f"/v1/runs/{run}/claim", json={"job": job, "take_over": take_over})
        return float(answer["valid_s"])

    def release(self, run: str, job: str) -> None:
        """Say that a job no longer uses a run."""
        self._json("POST", f"/v1/runs/{run}/release", json={"job": job})

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
        """The samples that `rank` rehearses in a window of steps; an empty batch where it rehearses none.

        `topk` asks for the base model's likeliest tokens too, for distilled rehearsal; the corpus must store them.
        `zstd` compresses the answer: for slow networks, since it costs both sides CPU time. A window that does not fit
        into one answer of the service is fetched by several requests.
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
                raise ServiceError(f"{self._requests.where} sent no batch: {error}") from error
            header = batch.header
            steps = [each.step for each in header.steps]
            if (header.run, header.rank, header.world_size, steps) != (run, rank, world_size, list(asked)):
                raise DamagedAnswer(f"a batch of run {header.run!r} for rank {header.rank} and steps {steps[:1]}...")
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
        """Report what a rank has trained on from `first_step` to before `next_step`; False if it was counted before.

        When this returns the report is durable. A rank reports its steps once, in order.
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
        return self._requests.send(Request(method, path, headers, body), read, self.retry, self.timeout_s)


def _joined(run: str, parts: Sequence[Batch]) -> Batch:
    """Batches of adjacent windows as one; raises RunGone when the run was rewound between them."""
    if any(part.header.attempt != parts[0].header.attempt for part in parts):
        raise RunGone(ATTEMPT_SUPERSEDED, f"run {run!r} was rewound while a window of it was fetched", HTTPStatus.OK)
    return parts[0] if len(parts) == 1 else Batch.joined(parts)


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


def _authorization(token: str) -> dict[str, str]:
    """The header that shows a token; none if it is empty. A file's last newline is no part of a token."""
    token = token.strip()
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise ServiceError(f"the token, from the caller or from {TOKEN_VARIABLE}, has characters that no token has")
    return {"Authorization": f"Bearer {token}"}
