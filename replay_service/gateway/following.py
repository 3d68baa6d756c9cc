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
from replay_service.gateway.times import iso_of
from replay_service.ledger import event_log
from replay_service.ledger.event_log import LoggedEvent
from replay_service.ledger.journal import Journal
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


@dataclass(slots=True)
class Follower:
    """Follows the events of one run after number `after`.

    Attributes:
        kinds: which kinds; None: all.
        info_of: what is told of an event that comes by itself.
        is_stopping: whether the service stops; the stream ends then.
        check_access: raises AccessError when the caller may not look any more.
    """

    journal: Journal
    run: str
    after: int
    kinds: Collection[str] | None
    info_of: Callable[[LoggedEvent], EventInfo]
    is_stopping: Callable[[], bool]
    check_access: Callable[[], None]

    async def events(self) -> AsyncIterator[bytes]:
        """The stream. It ends when the service stops, the run is gone, or the caller may not look any more."""
        # The first bytes let the head of the answer go out.
        yield format_sse_event(comment=f"events of {self.run}", retry=RETRY_MS)
        incarnation = (await run_in_threadpool(self.journal.point, self.run)).incarnation
        said_at = checked_at = time.monotonic()
        while not self.is_stopping():
            try:
                point = await run_in_threadpool(self.journal.point, self.run)
                if time.monotonic() - checked_at >= _CHECK_ACCESS_S:
                    checked_at = time.monotonic()
                    self.check_access()
            except (UnknownRun, AccessError):
                return
            if point.incarnation != incarnation:
                return
            if point.as_of > self.after:
                for each in await run_in_threadpool(self._look):
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

    def _look(self) -> list[bytes]:
        page = event_log.read_page(self.journal, self.run, self.after, _MOST_AT_ONCE, self.kinds)
        self.after = page.next_after
        return [each.to_bytes() for each in told(page.events, self.info_of)]


@dataclass(frozen=True, slots=True)
class Told:
    """One server-sent event."""

    seq: int
    kind: str
    content: EventInfo | EventSummary

    def to_bytes(self) -> bytes:
        return format_sse_event(data_str=self.content.model_dump_json(), event=self.kind, id=str(self.seq))


def told(events: Iterable[LoggedEvent], info_of: Callable[[LoggedEvent], EventInfo]) -> Iterator[Told]:
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
        yield Told(info.seq, info.kind, info)
    if common:
        yield _summed(common)


def _summed(events: list[LoggedEvent]) -> Told:
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
    return Told(last.seq, PROGRESS, summary)
