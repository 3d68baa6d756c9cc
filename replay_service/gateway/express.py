"""What trainers ask in every step, answered beside the application.

Middlewares, a task, and threads that are waited for cost several times what it takes to read a batch or to take in a
report. So a connection asks here first: plain requests are admitted by the same rules, and answered at once where all
is at hand, or else by a thread from beginning to end. Whatever is not plain goes on to the application, above all what
is refused before that: it says why.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Final

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.types import Scope

from replay_service.errors import ReplayError
from replay_service.gateway.middleware.access import ANONYMOUS, Access, caller_of, named_run
from replay_service.gateway.middleware.audit import write_line
from replay_service.gateway.middleware.beside import Reply, Waiting, Work
from replay_service.gateway.middleware.checksums import CHECKSUM_FIELD
from replay_service.gateway.middleware.direct import media_type
from replay_service.gateway.middleware.problems import of_exception
from replay_service.gateway.middleware.protection import SAFE_FIELDS, HostRule
from replay_service.gateway.models import BatchRequest
from replay_service.gateway.routes.batches import batch_at_hand, batch_made, fields_of, wants_json
from replay_service.gateway.routes.losses import take_in
from replay_service.gateway.wire.arrow import Batch, checksum, encode_parts
from replay_service.settings import ServiceSettings

MOST_BODY_BYTES: Final = 1 << 20
"""Of a plain request: the reports of some 26,000 samples."""

_SPECIAL: Final = frozenset([b"transfer-encoding", b"x-forwarded-for", b"x-forwarded-proto"])
"""Headers of requests that are not plain: uvicorn has proxies that it trusts say who the caller is."""

_PATH: Final = re.compile("/v1/runs/([^/]+)/(batches|losses)")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request whose caller may train on the run."""

    run: str
    kind: str
    """The last part of its path."""
    headers: dict[bytes, bytes]
    scope: Scope
    access: Access


class Express:
    """Answers requests to an application that is served in this process."""

    def __init__(self, app: Starlette, settings: ServiceSettings) -> None:
        self._state = app.state
        self._waiting: dict[tuple[str, int, int], Waiting] = {}
        """Who waits for windows that are being planned: ranks of one job ask for the same at the same time."""
        self._is_each_alone = False
        """What was waited for has failed: those who did ask again, side by side."""
        self._hosts = HostRule(settings)
        self._most_body_bytes = min(MOST_BODY_BYTES, settings.max_body_bytes)

    def admit(self, scope: Scope) -> Admitted | None:
        """A request whose head has come, if it is plain so far."""
        found = _PATH.fullmatch(scope["path"]) if scope["method"] == "POST" else None
        if found is None:
            return None
        headers: dict[bytes, bytes] = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        is_plain = len(headers) == len(scope["headers"]) and length.isdigit() and not headers.keys() & _SPECIAL
        if not is_plain or int(length) > self._most_body_bytes:
            return None
        if not self._hosts.allows(headers.get(b"host", b"").decode("latin-1")):
            return None
        try:
            tokens = self._state.tokens
            access = Access(ANONYMOUS if tokens is None else caller_of(scope, tokens, datetime.now(UTC)))
            access.need("train")
            named_run(found[1], access)
        except ReplayError:
            return None
        return Admitted(found[1], found[2], headers, scope, access)

    def answer(self, request: Admitted, body: bytes | bytearray) -> Reply | Work | Waiting | None:
        """The answer to a request whose body has come: at once, by work for a thread, when others' is done, or by the
        application."""
        promised = request.headers.get(CHECKSUM_FIELD)
        if promised is not None and promised.decode("latin-1").lower() != checksum(body):
            return None
        if request.kind == "losses":
            return self._work(request, partial(self._losses, request, bytes(body)))
        try:
            asked = BatchRequest.model_validate_json(body)
            if not self._is_plain(request, asked):
                return None
            is_possible = asked.rank < asked.world_size and asked.num_steps <= self._state.batches.max_steps_per_request
            window = self._state.plan.at_hand(request.run, asked.step, asked.num_steps) if is_possible else None
            batch = None if window is None else batch_at_hand(self._state.batches, window, asked)
        except (ValidationError, ReplayError, SQLAlchemyError):
            return None
        if batch is not None:
            return _reply_of(batch)
        if window is not None:
            return self._work(request, partial(self._batch, request, asked))
        return self._planned(request, asked)

    def _is_plain(self, request: Admitted, asked: BatchRequest) -> bool:
        is_json = media_type(request.headers) == "application/json"
        is_usual = asked.compression == "none" and not asked.text and not wants_json(request.headers)
        return is_json and is_usual and not self._state.batches.corpora.is_remote

    def _planned(self, request: Admitted, asked: BatchRequest) -> Work | Waiting | None:
        window = request.run, asked.step, asked.num_steps
        waiting = self._waiting.get(window)
        if waiting is not None:
            return waiting

        def ask_again() -> None:
            waiting, self._is_each_alone = self._waiting.pop(window), not is_made
            try:
                for each in waiting:
                    each()
            finally:
                self._is_each_alone = False

        is_made = False

        def make() -> Reply:
            nonlocal is_made
            reply = self._batch(request, asked)
            is_made = True
            return reply

        if self._is_each_alone:
            return self._work(request, make)
        work = self._work(request, make, ask_again)
        if work is not None:
            self._waiting[window] = []
        return work

    def _work(
        self, request: Admitted, make: Callable[[], Reply], then: Callable[[], None] = lambda: None
    ) -> Work | None:
        """Work that has a place among the requests in progress; None if there is none."""
        in_progress = self._state.in_progress

        def make_anyway() -> Reply:
            try:
                return make()
            except Exception as error:
                response = of_exception(error, request.scope)
                return _reply(response.status_code, response.raw_headers, response.body)

        def done() -> None:
            in_progress.end()
            then()

        return Work(make_anyway, done) if in_progress.begin() else None

    def _batch(self, request: Admitted, asked: BatchRequest) -> Reply:
        batch, is_change = batch_made(self._state.batches, self._state.plan, request.run, asked)
        reply = _reply_of(batch)
        if is_change:
            _audit(request)
        return reply

    def _losses(self, request: Admitted, body: bytes) -> Reply:
        content = take_in(self._state.service.owners, request.run, media_type(request.headers), body)
        _audit(request)
        return _reply(
            HTTPStatus.OK, [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")], content
        )


def _audit(request: Admitted) -> None:
    route = f"/v1/runs/{{run}}/{request.kind}"
    write_line(request.scope, request.access.caller, HTTPStatus.OK, route, run=request.run)


def _reply_of(batch: Batch) -> Reply:
    parts = encode_parts(batch)
    return _reply(HTTPStatus.OK, fields_of(batch, sum(map(len, parts))), *parts)


def _reply(status: int, fields: list[tuple[bytes, bytes]], *parts: memoryview | bytes) -> Reply:
    every = [*fields, (CHECKSUM_FIELD, checksum(*parts).encode()), *SAFE_FIELDS]
    return Reply(status, b"".join([b"%b: %b\r\n" % each for each in every]), parts)
