"""Batches: the samples that a rank rehearses in a window of steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from replay_service.corpus.reader import Corpus
from replay_service.errors import InvalidRequest, NotAcceptable, StepOutOfRange
from replay_service.gateway.access import TRAIN, RunName
from replay_service.gateway.models import MAX_INT64, BatchRequest
from replay_service.gateway.problems import responses
from replay_service.gateway.service import ReplayService, Service
from replay_service.gateway.wire import ARROW_STREAM, Batch, BatchHeader, StepHeader, encode_batch
from replay_service.ledger.owner import RunOwner
from replay_service.sampling.events import Planned
from replay_service.sampling.injection import rank_positions

router = APIRouter(prefix="/v1/runs/{run}", tags=["batches"])

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
def get_batches(run: RunName, body: BatchRequest, request: Request, service: Service) -> Response:
    """The samples that one rank rehearses in a window of steps.

    The plan of a step is made when it is first asked for and never changes, unless the run is rewound: asking again
    gives the same samples, whatever happened in between. Arrow by default, JSON for people.
    """
    as_json = _wants_json(request)
    _check(service, body)
    owner = service.owners.get(run)
    # Read before the plan: if a rewind comes between, reports of this batch are stale, and never mistaken.
    attempt = owner.attempt
    plans = owner.plan(body.step, body.num_steps, service.settings.max_steps_ahead)
    corpus = service.corpora.get(owner.record.corpus)
    batch = _read(corpus, owner, attempt, plans, body)
    if corpus.is_remote:
        _read_ahead(service, corpus, body, run)
    if as_json:
        return JSONResponse(_to_json(batch))
    body_bytes = bytes(encode_batch(batch, body.compression))
    return Response(body_bytes, media_type=ARROW_STREAM, headers=_headers(batch))


def _headers(batch: Batch) -> dict[str, str]:
    """What the schema's metadata says, for those who do not look into the body."""
    header = batch.header
    return {
        "Replay-Wire-Version": str(header.wire_version),
        "Replay-Run": header.run,
        "Replay-Attempt": str(header.attempt),
        "Replay-Corpus": header.corpus,
        "Replay-Generation": str(header.generation),
        "Replay-Injection-Ratio": header.injection_ratio,
        "Replay-Policy-Version": str(header.steps[-1].policy_version),
        "Replay-Num-Samples": str(len(batch)),
    }


def _wants_json(request: Request) -> bool:
    """Whether JSON is asked for rather than Arrow; the type that stands first wins."""
    accepted = [part.split(";")[0].strip() for part in request.headers.get("accept", "*/*").lower().split(",")]
    for media_type in accepted:
        if media_type in (ARROW_STREAM, "application/*", "*/*"):
            return False
        if media_type == "application/json":
            return True
    raise NotAcceptable(f"batches come as {ARROW_STREAM} or as application/json, not as {', '.join(accepted)}")


def _check(service: ReplayService, body: BatchRequest) -> None:
    if body.rank >= body.world_size:
        raise InvalidRequest(
            f"rank {body.rank} is not in a job of world_size {body.world_size}; ranks are 0 to {body.world_size - 1}"
        )
    most = service.settings.max_steps_per_request
    if body.num_steps > most:
        raise InvalidRequest(f"num_steps {body.num_steps} is more than one request may ask for; ask for at most {most}")
    if body.step > MAX_INT64 - body.num_steps:
        raise StepOutOfRange(f"step {body.step} is beyond the last step there can be")


def _read_ahead(service: ReplayService, corpus: Corpus, body: BatchRequest, run: str) -> None:
    """Begin to fetch the rank's samples of the next window, as far as another rank has had it planned."""
    plans = service.journal.planned(run, body.step + body.num_steps, body.num_steps)
    if plans:
        corpus.read_ahead(np.concatenate([plan.rows["sample_id"][_slice(plan, body)] for plan in plans]))


def _read(corpus: Corpus, owner: RunOwner, attempt: int, plans: Sequence[Planned], body: BatchRequest) -> Batch:
    record = owner.record
    parts = [plan.rows[_slice(plan, body)] for plan in plans]
    planned = np.concatenate(parts)
    samples = corpus.rows(planned["sample_id"])
    generation, injection_ratio = owner.read(lambda state: (state.generation, state.config.injection_ratio))
    return Batch(
        header=BatchHeader(
            run=record.run,
            attempt=attempt,
            corpus=record.corpus,
            generation=generation,
            injection_ratio=injection_ratio,
            rank=body.rank,
            world_size=body.world_size,
            seq_len=corpus.manifest.seq_len,
            separator_id=corpus.manifest.separator_id,
            steps=[_step_header(plan) for plan in plans],
        ),
        step=np.repeat([plan.step for plan in plans], [len(part) for part in parts]),
        sample_id=planned["sample_id"],
        input_ids=samples.input_ids,
        length=samples.length,
        base_loss=samples.base_loss,
        base_correct=samples.base_correct,
        stratum=samples.stratum,
        probability=planned["probability"],
        times_drawn=planned["times_drawn"],
    )


def _step_header(plan: Planned) -> StepHeader:
    return StepHeader(plan.step, len(plan.rows), plan.rehearsed_before, plan.policy_version)


def _slice(plan: Planned, body: BatchRequest) -> slice:
    positions = rank_positions(len(plan.rows), plan.step, body.rank, body.world_size)
    return slice(positions.start, positions.stop, positions.step)


def _to_json(batch: Batch) -> dict[str, Any]:
    header = batch.header
    steps = []
    for each in header.steps:
        rows = batch.of_step(each.step)
        samples = [
            {
                "sample_id": int(rows.sample_id[i]),
                "input_ids": rows.input_ids[i, : rows.length[i]].tolist(),
                "base_loss": float(rows.base_loss[i]),
                "base_correct": np.unpackbits(rows.base_correct[i], count=rows.length[i], bitorder="little").tolist(),
                "stratum": int(rows.stratum[i]),
                "probability": float(rows.probability[i]),
                "times_drawn": int(rows.times_drawn[i]),
            }
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
        "steps": steps,
    }
