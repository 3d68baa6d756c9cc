"""Batches: the samples that a rank rehearses in a window of steps.

The bytes of a large batch are copied twice on their way from the page cache to the socket: columns are gathered from
the segments, and the system copies them into the socket's buffer. Narrow columns, and those of a small batch, are
copied to their places in the Arrow stream in between (`wire.encoding`).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from replay_service.errors import CorpusError, InvalidRequest, NotAcceptable
from replay_service.gateway.batches import MOST_BYTES_AT_ONCE, BatchSource
from replay_service.gateway.logs import bind_work
from replay_service.gateway.middleware.access import changes_nothing
from replay_service.gateway.middleware.checksums import CHECKSUM_FIELD
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import BatchRequest
from replay_service.gateway.routes.raw import RawRoute, described, is_json, media_type, parsed, run_of
from replay_service.wire.batches import Batch, encode_batch, encode_parts
from replay_service.wire.json_batches import to_json
from replay_service.wire.protocol import ARROW_STREAM, checksum

router = APIRouter(prefix="/v1/runs/{run}", tags=["batches"], route_class=RawRoute)

_ARROW: Final = ARROW_STREAM.encode()

_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The rank's samples of the window, in step order.",
        "content": {
            ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": {"type": "object"}},
        },
    }
}


@router.post(
    "/batches",
    operation_id="get_batches",
    response_class=Response,
    responses={**_CONTENT, **responses(404, 406, 409, 422, 503)},
    openapi_extra=described("train", {"application/json": BatchRequest.model_json_schema()}),
)
async def get_batches(request: Request) -> Response:
    """The samples that one rank rehearses in a window of steps.

    The plan of a step is made when it is first asked for and never changes, unless the run is rewound: asking again
    gives the same samples, whatever happened in between. Arrow by default, JSON for people. A window whose samples
    have more bytes than the service's `max_response_bytes` is refused, and `max_steps` says how many steps fit.
    """
    run = run_of(request, "train")
    if not is_json(media_type(request)):
        raise InvalidRequest("send the body as JSON, with the header `Content-Type: application/json`")
    asked = parsed(BatchRequest, await request.body())
    bind_work(request.scope, rank=asked.rank, step=asked.step)
    as_json = _prefers_json(request.headers.get("accept", "*/*"))
    if asked.text and not as_json:
        raise InvalidRequest("text is for people and comes as JSON; send `Accept: application/json` with it")
    source: BatchSource = request.app.state.batches
    batch, is_new = await source.batch(run, asked, as_json)
    if not is_new:
        changes_nothing(request.scope)
    if as_json:
        return await run_in_threadpool(lambda: JSONResponse(to_json(batch, _texts(batch, source, asked))))
    return ArrowResponse(batch, await _encoded(batch, asked))


class ArrowResponse(Response):
    """A batch as an Arrow stream, sent part by part as it was encoded."""

    def __init__(self, batch: Batch, parts: Sequence[memoryview]) -> None:
        self.status_code, self.background = 200, None
        self._parts = parts
        header = batch.header
        # What the schema's metadata says, for those who do not look into the body.
        self.raw_headers = [
            (b"content-type", _ARROW),
            (b"content-length", b"%d" % sum(map(len, parts))),
            (b"replay-wire-version", b"%d" % header.wire_version),
            (b"replay-run", header.run.encode()),
            (b"replay-attempt", b"%d" % header.attempt),
            (b"replay-corpus", header.corpus.encode()),
            (b"replay-generation", b"%d" % header.generation),
            (b"replay-injection-ratio", header.injection_ratio.encode()),
            (b"replay-policy-version", b"%d" % header.steps[-1].policy_version),
            (b"replay-num-samples", b"%d" % len(batch)),
            (CHECKSUM_FIELD, checksum(*parts).encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._parts[:-1]:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": self._parts[-1]})


async def _encoded(batch: Batch, asked: BatchRequest) -> Sequence[memoryview]:
    if asked.compression != "none":
        return [await run_in_threadpool(encode_batch, batch, asked.compression)]
    is_small = sum(each.nbytes for each in batch.columns().values()) <= MOST_BYTES_AT_ONCE
    return encode_parts(batch) if is_small else await run_in_threadpool(encode_parts, batch)


@lru_cache(64)
def _prefers_json(accept: str) -> bool:
    """Whether JSON is asked for rather than Arrow; the type that stands first wins."""
    accepted = [part.split(";")[0].strip() for part in accept.lower().split(",")]
    for wanted in accepted:
        if wanted in (ARROW_STREAM, "application/*", "*/*"):
            return False
        if wanted == "application/json":
            return True
    raise NotAcceptable(f"batches come as {ARROW_STREAM} or as application/json, not as {', '.join(accepted)}")


def _texts(batch: Batch, source: BatchSource, asked: BatchRequest) -> list[str] | None:
    """The text of each sample of a batch, if it was asked for."""
    if not asked.text:
        return None
    try:
        return source.corpora.at(batch.header.corpus, batch.header.generation).texts.of(batch.input_ids, batch.length)
    except CorpusError as error:
        raise InvalidRequest(error.detail) from error
