"""A run's events as they happen, as server-sent events (HTML, section 9.2).

Plans and reports come many times a second, so those that were committed between two looks are summed up in one event of
the kind `progress`. All other events come one by one. The id of each is the number of the last event that it tells of:
whoever gives it as Last-Event-ID goes on after it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from replay_service.errors import AccessError, UnknownRun
from replay_service.gateway.event_models import EventInfo, EventSummary
from replay_service.gateway.recent_answers import RecentAnswers
from replay_service.gateway.times import iso_of
from replay_service.ledger import event_log
from replay_service.ledger.damaged_journals import Incarnation
from replay_service.ledger.event_log import LoggedEvent
from replay_service.ledger.journal import Journal
from replay_service.ledger.progress import Point
from replay_service.ledger.schema import COMMON_KINDS
from replay_service.sampling.events import Planned, Reported

PROGRESS: Final = "progress"
LOOK_EVERY_S: Final = 1.0
KEEP_ALIVE_S: Final = 15.0
RETRY_MS: Final = 2000
"""How long a browser waits before it connects again."""
_NOTICE_STOP_S: Final = 0.1
_MOST_AT_ONCE: Final = 100
"""Events that a watcher has in memory."""
_CHECK_ACCESS_S: Final = 5.0
_POINT_AGE_S: Final = 0.9 * LOOK_EVERY_S
_TOLD_AGE_S: Final = 60.0
"""What was told of some events never changes; it is kept for as long as there may be others to tell it to."""


@dataclass(frozen=True, slots=True)
class Told:
    """What followers of a run are told of some of its events.

    Attributes:
        next_after: the event to go on after.
    """

    parts: list[bytes]
    next_after: int


class SharedEvents:
    """The events of runs as all who follow them are told: one look into a journal a second, whoever follows.

    Followers begin where they like. After the first look they all stand at the same event, and are given the same.

    Args:
        points: of recent looks, by run.
        told: of recent looks.
        info_of: what is told of an event that comes by itself.
    """

    def __init__(
        self,
        journal: Journal,
        points: RecentAnswers[Point],
        told: RecentAnswers[Told],
        info_of: Callable[[LoggedEvent], EventInfo],
    ) -> None:
        self._journal = journal
        self._points = points
        self._told = told
        self._info_of = info_of

    def point(self, run: str, incarnation: Incarnation) -> Point:
        """The end of a run's journal, of less than a second ago; of now, if another run has the name.

        Raises:
            UnknownRun: when there is no such run.
        """
        point = self._points.get(run, _POINT_AGE_S, lambda: self._journal.point(run))
        if point.incarnation == incarnation:
            return point
        return self._points.get(run, 0.0, lambda: self._journal.point(run))

    def after(self, run: str, after: int, point: Point, kinds: Collection[str] | None) -> Told:
        """What is to be told of the events after number `after`, up to a point."""
        asked = f"{run} {point.incarnation} {after} {point.as_of} {kinds and sorted(kinds)}"
        return self._told.get(asked, _TOLD_AGE_S, lambda: self._read(run, after, point.as_of, kinds))

    def _read(self, run: str, after: int, as_of: int, kinds: Collection[str] | None) -> Told:
        page = event_log.read_page(self._journal, run, after, _MOST_AT_ONCE, kinds, as_of)
        return Told([each.to_bytes() for each in told(page.events, self._info_of)], page.next_after)


@dataclass(slots=True)
class Follower:
    """Follows the events of one run after number `after`.

    Attributes:
        kinds: which kinds; None: all.
        is_stopping: whether the service stops; the stream ends then.
        check_access: raises AccessError when the caller may not look any more.
    """

    shared: SharedEvents
    run: str
    incarnation: Incarnation
    after: int
    kinds: Collection[str] | None
    is_stopping: Callable[[], bool]
    check_access: Callable[[], None]

    async def events(self) -> AsyncIterator[bytes]:
        """The stream. It ends when the service stops, the run is gone, or the caller may not look any more."""
        # The first bytes let the head of the answer go out.
        yield format_sse_event(comment=f"events of {self.run}", retry=RETRY_MS)
        said_at = checked_at = time.monotonic()
        while not self.is_stopping():
            try:
                point = await run_in_threadpool(self.shared.point, self.run, self.incarnation)
                if time.monotonic() - checked_at >= _CHECK_ACCESS_S:
                    checked_at = time.monotonic()
                    self.check_access()
            except (UnknownRun, AccessError):
                return
            if point.incarnation != self.incarnation:
                return
            if point.as_of > self.after:
                found = await run_in_threadpool(self.shared.after, self.run, self.after, point, self.kinds)
                self.after = found.next_after
                for each in found.parts:
                    said_at = time.monotonic()
                    yield each
                if self.after < point.as_of:
                    continue
            elif time.monotonic() - said_at >= KEEP_ALIVE_S:
                said_at = time.monotonic()
                yield KEEPALIVE_COMMENT
            await self._pause()

    async def _pause(self) -> None:
        ends_at = time.monotonic() + LOOK_EVERY_S
        while time.monotonic() < ends_at and not self.is_stopping():
            await asyncio.sleep(_NOTICE_STOP_S)


@dataclass(frozen=True, slots=True)
class ToldEvent:
    """One server-sent event."""

    seq: int
    kind: str
    content: EventInfo | EventSummary

    def to_bytes(self) -> bytes:
        return format_sse_event(data_str=self.content.model_dump_json(), event=self.kind, id=str(self.seq))


def told(events: Iterable[LoggedEvent], info_of: Callable[[LoggedEvent], EventInfo]) -> Iterator[ToldEvent]:
    """Events as a follower hears of them: neighbouring plans and reports summed up, all others one by one."""
    common: list[LoggedEvent] = []
    for logged in events:
        info = info_of(logged)
        if info.kind in COMMON_KINDS:
            common.append(logged)
            continue
        if common:
            yield _summed(common)
            common = []
        yield ToldEvent(info.seq, info.kind, info)
    if common:
        yield _summed(common)


def _summed(events: list[LoggedEvent]) -> ToldEvent:
    counts, rows = Counter[str](), Counter[str]()
    for each in events:
        event = each.entry.event
        kind = type(event).__name__.lower()
        counts[kind] += 1
        rows[kind] += len(event.rows) if isinstance(event, Planned | Reported) else 0
    last = events[-1].entry
    steps = [each.entry.event.step for each in events]
    summary = EventSummary(
        seq=last.seq,
        at=iso_of(last.committed_at),
        attempt=last.attempt,
        first_step=min(steps),
        last_step=max(steps),
        num_plans=counts["planned"],
        rows_rehearsed=rows["planned"],
        num_reports=counts["reported"],
        rows_reported=rows["reported"],
        num_counts=counts["trained"],
    )
    return ToldEvent(last.seq, PROGRESS, summary)
