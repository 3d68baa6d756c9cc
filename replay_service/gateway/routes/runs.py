"""Runs: creating and looking at them."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response

from replay_service.errors import InvalidRequest, InvalidRun
from replay_service.gateway.condition import facts_in, lifecycle_now, lifecycles, with_corpus
from replay_service.gateway.middleware.access import ADMIN, READ, TRAIN, RequestAccess, RunName
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import (
    AdoptRequest,
    CloseRequest,
    FinishRequest,
    RewindRequest,
    RunChange,
    RunCreate,
    RunInfo,
    RunList,
    RunSettings,
    RunSummary,
)
from replay_service.gateway.routes.strict import StrictRoute
from replay_service.gateway.service import ReplayService, Service
from replay_service.gateway.times import moment
from replay_service.ledger.lifecycle import LIFECYCLES, Lifecycle, RunFacts
from replay_service.ledger.progress import Point
from replay_service.ledger.records import RunOverview, RunRecord
from replay_service.ledger.run_view import RunView

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=StrictRoute)

_STATES: Final = ", ".join(LIFECYCLES)


@router.post(
    "",
    operation_id="create_run",
    status_code=201,
    dependencies=TRAIN,
    responses={200: {"model": RunInfo}, **responses(404, 409, 413, 422)},
)
def create_run(body: RunCreate, service: Service, access: RequestAccess, response: Response) -> RunInfo:
    """Create a run. Asking again for the same run is fine (200); for another configuration it is not (409)."""
    access.touch(body.run)
    try:
        config = RunSettings(**body.model_dump(exclude={"run", "corpus"})).to_config()
    except ValueError as error:
        raise InvalidRun(str(error)) from error
    if not service.owners.create(body.run, body.corpus, config, service.now()):
        response.status_code = 200
    response.headers["Location"] = f"/v1/runs/{body.run}"
    return _describe(service, body.run)


@router.get("", operation_id="list_runs", dependencies=READ, responses=responses(422))
def list_runs(
    service: Service,
    access: RequestAccess,
    state: Annotated[str | None, Query(description=f"Only runs in these states, with commas: {_STATES}.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Runs in a page.")] = 100,
    after: Annotated[str, Query(max_length=64, description="Only runs whose names come after this one.")] = "",
) -> RunList:
    """The runs that the caller may touch, by name, with their states and how far they are, page by page.

    It costs little, however long the runs are.
    """
    wanted = None if state is None else _states_in(state)
    heads = [each for each in service.journal.heads() if each.run > after and access.caller.may_touch(each.run)]
    found = dict(zip((each.run for each in heads), lifecycles(service, heads), strict=True))
    names = [run for run, lifecycle in found.items() if wanted is None or lifecycle in wanted]
    page = service.journal.overviews(names[:limit])
    further = names[limit - 1] if len(names) > limit else None
    return RunList(runs=[_summary(each, found[each.record.run]) for each in page], next=further)


def _states_in(text: str) -> list[str]:
    states = [each.strip() for each in text.split(",")]
    unknown = [each for each in states if each not in LIFECYCLES]
    if unknown:
        raise InvalidRequest(f"there is no state {unknown[0]!r}; states are {_STATES}, with commas between them")
    return states


@router.get("/{run}", operation_id="get_run", dependencies=READ, responses=responses(404, 422))
def get_run(run: RunName, service: Service) -> RunInfo:
    """One run, its configuration and how far it is."""
    return _describe(service, run)


@router.patch("/{run}", operation_id="configure_run", dependencies=TRAIN, responses=responses(404, 413, 422))
def configure_run(run: RunName, body: RunChange, service: Service) -> RunInfo:
    """Change how a run samples, from its first step that has no plan yet. The policy gets a new version.

    A change of the damage signal or of its bounds begins the damage estimate anew. Of a run that was created with
    `injection_fixed`, the injection ratio, its schedule and budget cannot be changed.
    """
    service.owners.get(run).configure(body.changes())
    return _describe(service, run)


@router.post("/{run}/adopt", operation_id="adopt_generation", dependencies=TRAIN, responses=responses(404, 413, 422))
def adopt_generation(run: RunName, body: AdoptRequest, service: Service) -> RunInfo:
    """See a later generation of the corpus from the first step that has no plan yet: by default, the latest one.

    Within the epochs that are going on nothing repeats, and the new samples are as likely as those that are left.
    """
    service.owners.get(run).adopt(body.generation)
    return _describe(service, run)


@router.post("/{run}/rewind", operation_id="rewind_run", dependencies=TRAIN, responses=responses(404, 413, 422))
def rewind_run(run: RunName, body: RewindRequest, service: Service) -> RunInfo:
    """Go back to the state that the run had after a step, as a training job does that resumes from a checkpoint.

    Plans, reports and changes of later steps are forgotten; the steps are planned anew when they are asked for. A new
    attempt begins: reports of batches that were served before are stale, and counted as rejected.
    """
    service.owners.get(run).rewind(body.step)
    return _describe(service, run)


@router.post("/{run}/close", operation_id="close_run", dependencies=TRAIN, responses=responses(404, 422))
def close_run(run: RunName, _body: CloseRequest, service: Service) -> RunInfo:
    """Plan no further step (409). Plans that were made are still served, and reports of them still count."""
    service.owners.get(run).close()
    return _describe(service, run)


@router.post("/{run}/finish", operation_id="finish_run", dependencies=TRAIN, responses=responses(404, 413, 422))
def finish_run(run: RunName, body: FinishRequest, service: Service) -> RunInfo:
    """Say that the job has ended, so that the run counts as finished, and not as stale.

    A plan of a later step, or a rewind to before the end, takes it back. Said twice, or of an attempt before a rewind,
    it changes nothing.
    """
    service.owners.get(run).finish(body.num_steps, body.attempt)
    return _describe(service, run)


@router.delete(
    "/{run}",
    operation_id="delete_run",
    dependencies=ADMIN,
    responses=responses(404, 409, 422),
)
def delete_run(run: RunName, service: Service) -> RunSummary:
    """Remove a closed run with its journal and all statistics, for good; its name is free then.

    The answer says what it was. Batches that trainers still have of it cannot be reported. The corpus stays.
    """
    overview = service.journal.overview(run)
    (lifecycle,) = lifecycles(service, [overview.head])
    service.owners.delete(run)
    return _summary(overview, lifecycle)


def _describe(service: ReplayService, run: str) -> RunInfo:
    limits = service.settings
    most_steps = min(limits.max_steps_per_request, limits.max_steps_ahead)
    record, facts, point, known = service.readers.read(run, lambda view: _look(view, most_steps))
    facts = with_corpus(service, facts, record, known["generation"])
    return RunInfo(**known, **moment(point, lifecycle_now(service, facts)))


def _look(view: RunView, most_steps: int) -> tuple[RunRecord, RunFacts, Point, dict[str, Any]]:
    record, state = view.record, view.state
    known: dict[str, Any] = {
        "run": record.run,
        "corpus": record.corpus,
        "generation": state.generation,
        "created_at": record.created_at,
        "config": RunSettings.of(state.config),
        "next_step": state.next_step,
        "closed": state.closed,
        "policy_version": state.policy_version,
        "max_window_steps": min(most_steps, state.config.fence or most_steps),
    }
    return record, facts_in(view), view.point, known


def _summary(overview: RunOverview, lifecycle: Lifecycle) -> RunSummary:
    return RunSummary(
        run=overview.record.run,
        corpus=overview.record.corpus,
        generation=overview.generation,
        created_at=overview.record.created_at,
        config=RunSettings.of(overview.config),
        next_step=overview.next_step,
        closed=overview.closed,
        **moment(overview.point, lifecycle),
    )
