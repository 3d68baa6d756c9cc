"""Batches: the samples that a rank rehearses in a window of steps.

The bytes of a large batch are copied twice on their way from the page cache to the socket: columns are gathered from
the mapped segments, and the system copies them into the socket's buffer. Narrow columns, and those of a small batch,
are copied to their places in the Arrow stream in between (`wire.arrow`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from replay_service.corpus.format.segments import SampleColumns, SampleRows
from replay_service.corpus.reading.reader import Corpus, CorpusStore, Int64Array
from replay_service.errors import CorpusError, InvalidRequest, NotAcceptable, StepOutOfRange
from replay_service.gateway.middleware.access import TRAIN, RunName, changes_nothing
from replay_service.gateway.middleware.direct import media_type, whole_body
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import MAX_INT64, BatchRequest
from replay_service.gateway.planning import OwnersPlan, Planner
from replay_service.gateway.wire.arrow import ARROW_STREAM, Batch, BatchHeader, Compression, StepHeader, encode_batch
from replay_service.ledger.windows import Window
from replay_service.sampling.events import Planned, stacked
from replay_service.sampling.injection import rank_positions

router = APIRouter(prefix="/v1/runs/{run}", tags=["batches"])

MOST_BYTES_AT_ONCE: Final = 4 << 20
"""Larger batches are read in a thread. To wake one up costs as much as to gather a megabyte, and the socket takes so
many bytes in one go too: nobody waits for either much longer than a millisecond."""

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
    dependencies=TRAIN,
    response_class=Response,
    responses={**_CONTENT, **responses(404, 406, 409, 413, 422, 503)},
)
async def get_batches(run: RunName, body: BatchRequest) -> Response:
    """The samples that one rank rehearses in a window of steps.

    The plan of a step is made when it is first asked for and never changes, unless the run is rewound: asking again
    gives the same samples, whatever happened in between. Arrow by default, JSON for people.
    """
    raise AssertionError("`Direct` stands before the routes, and answers; this route describes it")


Samples = SampleRows | SampleColumns


@dataclass(frozen=True, slots=True)
class BatchSource:
    """What batches are made from."""

    planner: Planner
    corpora: CorpusStore
    max_steps_per_request: int


async def answer_batches(run: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request for batches; the application's state has its BatchSource, `batches`."""
    headers = dict(scope["headers"])
    asked = BatchRequest.model_validate_json(await _json_body(headers, receive))
    as_json = wants_json(headers)
    source: BatchSource = scope["app"].state.batches
    _check(asked, source.max_steps_per_request)
    if asked.text and not as_json:
        raise InvalidRequest("text is for people and comes as JSON; send `Accept: application/json` with it")
    window = await source.planner.window(run, asked.step, asked.num_steps)
    if not window.is_new:
        changes_nothing(scope)
    batch = await _read(source, window, asked)
    if as_json:
        response = await run_in_threadpool(lambda: JSONResponse(_to_json(batch, texts_of(batch, source, asked))))
        await response(scope, receive, send)
        return
    body = await _encoded(batch, asked.compression)
    head = {"type": "http.response.start", "status": 200, "headers": fields_of(batch, len(body))}
    await send(head)
    await send({"type": "http.response.body", "body": body})


async def _json_body(headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
    """The body of a request; raises InvalidRequest when its header does not say that it is JSON."""
    found = media_type(headers)
    if found != "application/json" and not (found.startswith("application/") and found.endswith("+json")):
        raise InvalidRequest("send the body as JSON, with the header `Content-Type: application/json`")
    return await whole_body(receive)


async def _read(source: BatchSource, window: Window, asked: BatchRequest) -> Batch:
    """The rank's rows of a window."""
    mine = RankRows.of(window, asked)
    is_remote = source.corpora.is_remote
    if is_remote:
        corpus = await run_in_threadpool(source.corpora.at, window.corpus, window.generation)
    else:
        corpus = source.corpora.at(window.corpus, window.generation)
    corpus.need(window.generation)
    _check_topk(corpus, asked)
    try:
        samples = await _rows(corpus, mine.rows["sample_id"])
    except IndexError:
        corpus.need(window.generation)  # the process that plans may have seen a later one
        raise
    if is_remote:
        await _read_ahead(source.planner, corpus, window, asked)
    return batch_of(window, asked, corpus, mine, samples)


def batch_at_hand(source: BatchSource, window: Window, asked: BatchRequest) -> Batch | None:
    """The batch of plans that were made, if it is small and its samples were read before."""
    mine = RankRows.of(window, asked)
    corpus = source.corpora.at(window.corpus, window.generation)
    corpus.need(window.generation)
    if len(mine.rows) * corpus.record_bytes > MOST_BYTES_AT_ONCE or (asked.topk and not corpus.manifest.topk):
        return None
    samples = corpus.columns_at_hand(mine.rows["sample_id"])
    return None if samples is None else batch_of(window, asked, corpus, mine, samples)


def batch_made(source: BatchSource, plan: OwnersPlan, run: str, asked: BatchRequest) -> tuple[Batch, bool]:
    """A batch, and whether plans were made for it, on this thread from beginning to end."""
    _check(asked, source.max_steps_per_request)
    window = plan.made(run, asked.step, asked.num_steps)
    mine = RankRows.of(window, asked)
    corpus = source.corpora.at(window.corpus, window.generation)
    corpus.need(window.generation)
    _check_topk(corpus, asked)
    samples = corpus.columns_at_hand(mine.rows["sample_id"]) or corpus.rows(mine.rows["sample_id"])
    return batch_of(window, asked, corpus, mine, samples), window.is_new


async def _rows(corpus: Corpus, sample_ids: Int64Array) -> Samples:
    """Samples, read in a thread unless that is a matter of microseconds."""
    is_small = len(sample_ids) * corpus.record_bytes <= MOST_BYTES_AT_ONCE
    at_hand = corpus.columns_at_hand(sample_ids) if is_small else None
    return await run_in_threadpool(corpus.rows, sample_ids) if at_hand is None else at_hand


async def _encoded(batch: Batch, compression: Compression) -> memoryview:
    is_small = sum(each.nbytes for each in batch.columns().values()) <= MOST_BYTES_AT_ONCE
    if compression == "none" and is_small:
        return encode_batch(batch)
    return await run_in_threadpool(encode_batch, batch, compression)


async def _read_ahead(planner: Planner, corpus: Corpus, window: Window, asked: BatchRequest) -> None:
    """Begin to fetch the rank's samples of the next window, as far as another rank has had it planned."""
    plans = await planner.planned(window.run, asked.step + asked.num_steps, asked.num_steps)
    if plans:
        sample_ids = np.concatenate([plan.rows["sample_id"][_slice(plan, asked)] for plan in plans])
        await run_in_threadpool(partial(corpus.read_ahead, sample_ids))


def fields_of(batch: Batch, num_bytes: int) -> list[tuple[bytes, bytes]]:
    """What the schema's metadata says, for those who do not look into the body."""
    header = batch.header
    return [
        (b"content-type", _ARROW),
        (b"content-length", b"%d" % num_bytes),
        (b"replay-wire-version", b"%d" % header.wire_version),
        (b"replay-run", header.run.encode()),
        (b"replay-attempt", b"%d" % header.attempt),
        (b"replay-corpus", header.corpus.encode()),
        (b"replay-generation", b"%d" % header.generation),
        (b"replay-injection-ratio", header.injection_ratio.encode()),
        (b"replay-policy-version", b"%d" % header.steps[-1].policy_version),
        (b"replay-num-samples", b"%d" % len(batch)),
    ]


def wants_json(headers: Mapping[bytes, bytes]) -> bool:
    """Whether JSON is asked for rather than Arrow; the type that stands first wins."""
    return _prefers_json(headers.get(b"accept", b"*/*"))


@lru_cache(64)
def _prefers_json(accept: bytes) -> bool:
    accepted = [part.split(";")[0].strip() for part in accept.decode("latin-1").lower().split(",")]
    for wanted in accepted:
        if wanted in (ARROW_STREAM, "application/*", "*/*"):
            return False
        if wanted == "application/json":
            return True
    raise NotAcceptable(f"batches come as {ARROW_STREAM} or as application/json, not as {', '.join(accepted)}")


def _check(asked: BatchRequest, most_steps: int) -> None:
    if asked.rank >= asked.world_size:
        raise InvalidRequest(
            f"rank {asked.rank} is not in a job of world_size {asked.world_size}; ranks are 0 to {asked.world_size - 1}"
        )
    if asked.num_steps > most_steps:
        raise InvalidRequest(
            f"num_steps {asked.num_steps} is more than one request may ask for; ask for at most {most_steps}"
        )
    if asked.step > MAX_INT64 - asked.num_steps:
        raise StepOutOfRange(f"step {asked.step} is beyond the last step there can be")


def _check_topk(corpus: Corpus, asked: BatchRequest) -> None:
    if asked.topk and not corpus.manifest.topk:
        raise InvalidRequest(
            f"corpus {corpus.manifest.name!r} does not store the base model's likeliest tokens; ingest it with "
            "`--store-topk 8`, or ask without topk"
        )


@dataclass(frozen=True, slots=True)
class RankRows:
    """What a rank rehearses in a window of steps.

    Attributes:
        rows: PLANNED_ROW [n], in step order.
        num_rows: how many there are of each step.
    """

    rows: np.ndarray
    num_rows: Sequence[int]

    @classmethod
    def of(cls, window: Window, asked: BatchRequest) -> "RankRows":
        parts = [plan.rows[_slice(plan, asked)] for plan in window.plans]
        return cls(stacked(parts), [len(each) for each in parts])


def batch_of(window: Window, asked: BatchRequest, corpus: Corpus, mine: RankRows, samples: Samples) -> Batch:
    """The batch of a rank's rows and the samples that they name."""
    return Batch(
        header=BatchHeader(
            run=window.run,
            attempt=window.attempt,
            corpus=window.corpus,
            generation=window.generation,
            injection_ratio=window.injection_ratio,
            rank=asked.rank,
            world_size=asked.world_size,
            seq_len=corpus.manifest.seq_len,
            separator_id=corpus.manifest.separator_id,
            steps=[_step_header(plan) for plan in window.plans],
            kind=corpus.manifest.kind,
        ),
        step=np.repeat([plan.step for plan in window.plans], mine.num_rows),
        sample_id=mine.rows["sample_id"],
        input_ids=samples.input_ids,
        length=samples.length,
        base_loss=samples.base_loss,
        base_correct=samples.base_correct,
        stratum=samples.stratum,
        probability=mine.rows["probability"],
        times_drawn=mine.rows["times_drawn"],
        topk_ids=samples.topk_ids if asked.topk else None,
        topk_logprobs=samples.topk_logprobs if asked.topk else None,
        inputs=samples.inputs,
        label=samples.label,
    )


def _step_header(plan: Planned) -> StepHeader:
    return StepHeader(plan.step, len(plan.rows), plan.rehearsed_before, plan.policy_version)


def _slice(plan: Planned, asked: BatchRequest) -> slice:
    positions = rank_positions(len(plan.rows), plan.step, asked.rank, asked.world_size)
    return slice(positions.start, positions.stop, positions.step)


def texts_of(batch: Batch, source: BatchSource, asked: BatchRequest) -> list[str] | None:
    """The text of each sample of a batch, if it was asked for."""
    if not asked.text:
        return None
    try:
        return source.corpora.at(batch.header.corpus, batch.header.generation).texts.of(batch.input_ids, batch.length)
    except CorpusError as error:
        raise InvalidRequest(error.detail) from error


def _content(rows: Batch, i: int) -> dict[str, Any]:
    """What a sample is, and whether the base model was right about it."""
    ids = rows.input_ids[i, : rows.length[i]].tolist()
    bits = np.unpackbits(rows.base_correct[i], bitorder="little")
    if rows.label is None:
        return {"input_ids": ids, "base_correct": bits[: rows.length[i]].tolist()}
    inputs = {"input_ids": ids} if rows.inputs is None else {"inputs": rows.inputs[i].tolist()}
    return {**inputs, "label": int(rows.label[i]), "base_correct": int(bits[0])}


def _to_json(batch: Batch, texts: Sequence[str] | None) -> dict[str, Any]:
    header = batch.header
    steps, text = [], iter(texts or ())
    for each in header.steps:
        rows = batch.of_step(each.step)
        samples = [
            {
                "sample_id": int(rows.sample_id[i]),
                **_content(rows, i),
                "base_loss": float(rows.base_loss[i]),
                "stratum": int(rows.stratum[i]),
                "probability": float(rows.probability[i]),
                "times_drawn": int(rows.times_drawn[i]),
            }
            | ({} if texts is None else {"text": next(text)})
            for i in range(len(rows))
        ]
        steps.append(
            {
                "step": each.step,
                "num_rehearsed": each.num_rehearsed,
                "rehearsed_before": each.rehearsed_before,
                "policy_version": each.policy_version,
                "samples": samples,
            }
        )
    return {
        "run": header.run,
        "attempt": header.attempt,
        "corpus": header.corpus,
        "generation": header.generation,
        "injection_ratio": header.injection_ratio,
        "rank": header.rank,
        "world_size": header.world_size,
        "kind": header.kind,
        "steps": steps,
    }
