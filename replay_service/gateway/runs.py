"""Runs: creating and looking at them."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response

from replay_service.errors import InvalidRun
from replay_service.gateway.models import RunCreate, RunInfo, RunList, RunSettings, RunSummary
from replay_service.gateway.problems import responses
from replay_service.gateway.service import ReplayService, Service
from replay_service.ledger.journal import RunRecord

router = APIRouter(prefix="/v1/runs", tags=["runs"])


@router.post(
    "",
    operation_id="create_run",
    status_code=201,
    responses={200: {"model": RunInfo}, **responses(404, 409, 413, 422)},
)
def create_run(body: RunCreate, service: Service, response: Response) -> RunInfo:
    """Create a run. Asking again for the same run is fine (200); for another configuration it is not (409)."""
    try:
        config = RunSettings(**body.model_dump(exclude={"run", "corpus"})).to_config()
    except ValueError as error:
        raise InvalidRun(str(error)) from error
    generation = service.corpora.get(body.corpus).generation
    created = service.owners.create(RunRecord(body.run, body.corpus, generation, config, service.now()))
    if not created:
        response.status_code = 200
    response.headers["Location"] = f"/v1/runs/{body.run}"
    return _describe(service, body.run)


@router.get("", operation_id="list_runs")
def list_runs(service: Service) -> RunList:
    """All runs, by name, as they were created."""
    return RunList(runs=[RunSummary(**_summary(record)) for record in service.journal.runs()])


@router.get("/{run}", operation_id="get_run", responses=responses(404, 422))
def get_run(run: str, service: Service) -> RunInfo:
    """One run, its configuration and how far it is."""
    return _describe(service, run)


def _describe(service: ReplayService, run: str) -> RunInfo:
    owner = service.owners.get(run)
    next_step, policy_version = owner.read(lambda state: (state.next_step, state.policy_version))
    return RunInfo(**_summary(owner.record), next_step=next_step, policy_version=policy_version)


def _summary(record: RunRecord) -> dict[str, Any]:
    return {**asdict(record), "config": RunSettings(**asdict(record.config))}
