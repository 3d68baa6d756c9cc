"""The client of the service: typed, synchronous, and patient. It needs neither torch nor Ray."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial
from http import HTTPStatus
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
from trainer.answer import Answer, Way
from trainer.direct import Direct
from trainer.errors import AnswerTooLarge, RunGone, ServiceError, ServiceRefused, ServiceUnavailable
from trainer.refusals import ATTEMPT_SUPERSEDED, StatusError, json_of, may_pass, refusal
from trainer.transport import CA_FILE_VARIABLE, ByTransport, DeadlineTransport, is_distrust, proxy_to, trusted_by

TOKEN_VARIABLE = "REPLAY_TOKEN"

_CHECKSUM_NAME: Final = CHECKSUM_HEADER.lower()
_LEAST_S: Final = 1.0
"""What an attempt is given at least, seconds, however little time is left."""

_JSON: Final = {"Accept": "*/*", "Content-Type": "application/json"}
_BATCH: Final = {"Accept": ARROW_STREAM, "Content-Type": "application/json"}
_LOSSES: Final = {"Accept": "*/*", "Content-Type": ARROW_STREAM}

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
    _way: Way = field(init=False, repr=False)
    _is_closed: bool = field(default=False, init=False, repr=False)

    def __post_init__(self, token: str | None) -> None:
        headers = {
            "User-Agent": "replay-trainer",
            "Accept-Encoding": "identity",
            **_authorization(token or os.environ.get(TOKEN_VARIABLE, "")),
        }
        self._way = self._make_way(headers)

    def _make_way(self, headers: Mapping[str, str]) -> Way:
        if self.transport is not None:
            return ByTransport(self.base_url, headers, self.transport, self.timeout_s)
        trusted = trusted_by(self.ca_file or os.environ.get(CA_FILE_VARIABLE))
        proxy = proxy_to(self.base_url)
        if proxy is not None:
            return ByTransport(self.base_url, headers, DeadlineTransport(trusted, proxy), self.timeout_s)
        return Direct(self.base_url, headers, trusted)

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
        return self._json("POST", f"/v1/runs/{run}/close", json={})

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

        def read(answer: Answer) -> Batch:
            try:
                batch = decode_batch(answer.content)
            except ValueError as error:
                raise ServiceError(f"the service at {self.base_url} sent no batch: {error}") from error
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
        self, method: str, path: str, read: Callable[[Answer], T], headers: Mapping[str, str], body: bytes
    ) -> T:
        """What `read` makes of the answer, which has come whole."""
        if body:
            headers = {**headers, CHECKSUM_HEADER: checksum(body)}
        ends_at = time.monotonic() + self.retry.give_up_after_s

        def attempt() -> T:
            return read(self._answer(method, path, headers, body, ends_at))

        try:
            try:
                return attempt()
            except (StatusError, httpx2.TransportError) as error:
                return self._again(attempt, error)
        except StatusError as error:
            raise refusal(error.answer) from error
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

    def _again(self, attempt: Callable[[], T], error: Exception) -> T:
        """What comes of further attempts, where the first ended with `error`."""
        failures = [error]
        for each in stamina.retry_context(
            on=self._wait_for,
            attempts=None,
            timeout=self.retry.give_up_after_s,
            wait_initial=self.retry.first_wait_s,
            wait_max=self.retry.longest_wait_s,
        ):
            with each:
                if failures:
                    raise failures.pop()
                return attempt()
        raise AssertionError("a retry loop ends with an answer or an error")

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes, ends_at: float) -> Answer:
        """One attempt: an answer that is right, and as it was sent."""
        if self._is_closed:
            raise ServiceError("the client was closed")
        now = time.monotonic()
        deadline = now + min(self.timeout_s, max(ends_at - now, _LEAST_S))
        answer = self._way.ask(method, path, headers, body, deadline)
        promised = answer.headers.get(_CHECKSUM_NAME)
        if promised is not None and checksum(answer.content) != promised:
            raise _Damaged(f"{len(answer.content)} bytes of which not all are right")
        if not 200 <= answer.status < 300:
            raise StatusError(answer)
        if promised is None:
            raise ServiceError(f"{answer.url} answered without a checksum; is it a replay service of this release?")
        return answer

    def _wait_for(self, error: Exception) -> bool | float:
        """Whether to try again after `error`, or after how many seconds."""
        if self._is_closed:
            return False
        if isinstance(error, httpx2.TransportError):
            return not is_distrust(error)
        if not isinstance(error, StatusError) or not may_pass(error.answer):
            return False
        after = error.answer.headers.get("retry-after", "")
        return min(float(after), self.retry.longest_wait_s) if after.isdigit() and int(after) else True


def _joined(run: str, parts: Sequence[Batch]) -> Batch:
    """Batches of adjacent windows as one; raises RunGone when the run was rewound between them."""
    if any(part.header.attempt != parts[0].header.attempt for part in parts):
        raise RunGone(ATTEMPT_SUPERSEDED, f"run {run!r} was rewound while a window of it was fetched", HTTPStatus.OK)
    return parts[0] if len(parts) == 1 else Batch.joined(parts)


class _Damaged(httpx2.TransportError):
    """An answer came that is not what was sent, or not to what was asked."""


def _object_of(answer: Answer) -> dict[str, Any]:
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
