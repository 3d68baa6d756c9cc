"""Events: what happened to a run, and when."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import EventSourceResponse

from replay_service.errors import InvalidRequest
from replay_service.gateway.event_models import EventInfo, EventPage, SettingChange
from replay_service.gateway.following import Follower, SharedEvents
from replay_service.gateway.middleware.access import READ, RunName, check_again
from replay_service.gateway.middleware.overload import EVENT_STREAM, is_watch
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import MAX_INT64
from replay_service.gateway.routes.strict import StrictRoute
from replay_service.gateway.service import ReplayService, Service
from replay_service.gateway.times import iso_of
from replay_service.ledger import event_log
from replay_service.ledger.event_log import LoggedEvent
from replay_service.ledger.event_text import text_of
from replay_service.sampling.events import Planned, Reported

router = APIRouter(prefix="/v1/runs/{run}", tags=["runs"], route_class=StrictRoute)

_KINDS = ", ".join(event_log.KINDS)

_STREAM: dict[str, Any] = {
    "description": "A page of events, or a stream of them.",
    "content": {EVENT_STREAM: {"schema": {"type": "string", "description": "Server-sent events."}}},
}


@router.get(
    "/events",
    operation_id="list_events",
    dependencies=READ,
    response_model=EventPage,
    responses={**responses(404, 422), 200: _STREAM},
)
def list_events(
    request: Request,
    run: RunName,
    service: Service,
    after: Annotated[
        int | None, Query(ge=-1, le=MAX_INT64, description="Only events after the one of this number.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events in a page.")] = 100,
    kind: Annotated[str | None, Query(description=f"Only these kinds, with commas between them: {_KINDS}.")] = None,
) -> EventPage | Response:
    """The events of a run with their times, oldest first, page by page. Events never change.

    To follow a run, ask again and give `next` as `after`; where `next` equals `as_of`, there is nothing further yet.

    With `Accept: text/event-stream` the answer stays open, and events come as they are committed (server-sent events).
    The id of each is its number; `Last-Event-ID` or `after` say after which to go on, by default the last one. Plans
    and reports are summed up once a second in events of the kind `progress` (`first_step`, `last_step`, `num_plans`,
    `rows_rehearsed`, `num_reports`, `rows_reported`); others come one by one, as in a page. `limit` has no meaning
    there.
    """
    kinds = None if kind is None else _kinds_in(kind)
    if is_watch(request.scope):
        return _follow(request, service, run, after, kinds)
    found = event_log.read_page(service.journal, run, -1 if after is None else after, limit, kinds)
    events = [info_of(each) for each in found.events]
    return EventPage(run=run, as_of=found.as_of, events=events, next=found.next_after)


def _follow(
    request: Request, service: ReplayService, run: str, after: int | None, kinds: list[str] | None
) -> EventSourceResponse:
    point = service.journal.point(run)
    begin = _last_event_id(request)
    begin = after if begin is None else begin
    if begin is not None and begin > point.as_of:
        raise InvalidRequest(f"run {run!r} has no event {begin} yet; its last one is {point.as_of}")
    state, scope = request.app.state, request.scope
    follower = Follower(
        shared=SharedEvents(service.journal, service.watched.points, service.watched.events, info_of),
        run=run,
        incarnation=point.incarnation,
        after=point.as_of if begin is None else begin,
        kinds=kinds,
        is_stopping=lambda: state.is_stopping,
        check_access=lambda: check_again(scope, run),
    )
    return EventSourceResponse(follower.events())


def _last_event_id(request: Request) -> int | None:
    given = request.headers.get("last-event-id")
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 19):
        raise InvalidRequest("Last-Event-ID must be the number of an event; leave it out to follow from now on")
    return int(given)


def _kinds_in(text: str) -> list[str]:
    kinds = [each.strip() for each in text.split(",")]
    unknown = [each for each in kinds if each not in event_log.KINDS]
    if unknown:
        raise InvalidRequest(
            f"there are no events of kind {unknown[0]!r}; kinds are {_KINDS}, with commas between them"
        )
    return kinds


def info_of(logged: LoggedEvent) -> EventInfo:
    """What an answer says of an event."""
    entry, event = logged.entry, logged.entry.event
    details: dict[str, Any] = {}
    if logged.changes:
        details["change"] = {
            name: SettingChange(before=each.before, after=each.after) for name, each in logged.changes.items()
        }
    if isinstance(event, Planned | Reported):
        details["num_rows"] = len(event.rows)
    for name in ("rank", "first_step", "reason"):
        details[name] = getattr(event, name, None)
    return EventInfo(
        seq=entry.seq,
        at=iso_of(entry.committed_at),
        kind=type(event).__name__.lower(),
        step=event.step,
        attempt=entry.attempt,
        text=text_of(logged),
        **details,
    )
