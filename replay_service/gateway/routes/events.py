"""Events: what happened to a run, and when."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from replay_service.errors import InvalidRequest
from replay_service.gateway.middleware.access import READ, RunName
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import MAX_INT64, EventInfo, EventPage, SettingChange
from replay_service.gateway.routes.strict import StrictRoute
from replay_service.gateway.service import Service
from replay_service.gateway.times import iso_of
from replay_service.ledger import event_log
from replay_service.ledger.event_log import LoggedEvent
from replay_service.ledger.event_text import text_of
from replay_service.sampling.events import Planned, Reported

router = APIRouter(prefix="/v1/runs/{run}", tags=["runs"], route_class=StrictRoute)

_KINDS = ", ".join(event_log.KINDS)


@router.get("/events", operation_id="list_events", dependencies=READ, responses=responses(404, 422))
def list_events(
    run: RunName,
    service: Service,
    after: Annotated[int, Query(ge=-1, le=MAX_INT64, description="Only events after the one of this number.")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events in a page.")] = 100,
    kind: Annotated[str | None, Query(description=f"Only these kinds, with commas between them: {_KINDS}.")] = None,
) -> EventPage:
    """The events of a run with their times, oldest first, page by page. Events never change.

    To follow a run, ask again and give `next` as `after`; where `next` equals `as_of`, there is nothing further yet.
    """
    found = event_log.read_page(service.journal, run, after, limit, None if kind is None else _kinds_in(kind))
    events = [_info(each) for each in found.events]
    return EventPage(run=run, as_of=found.as_of, events=events, next=found.next_after)


def _kinds_in(text: str) -> list[str]:
    kinds = [each.strip() for each in text.split(",")]
    unknown = [each for each in kinds if each not in event_log.KINDS]
    if unknown:
        raise InvalidRequest(
            f"there are no events of kind {unknown[0]!r}; kinds are {_KINDS}, with commas between them"
        )
    return kinds


def _info(logged: LoggedEvent) -> EventInfo:
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
