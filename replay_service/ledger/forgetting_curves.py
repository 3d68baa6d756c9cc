"""Curves of forgetting: estimates along a run, which readers make of its journal and keep in a table.

They are derived data, as the statistics of samples are. A reader folds the events that it has not seen, from the latest
point that is kept, and makes an estimate every few steps. So a look costs what has happened since the last one, after a
restart too. No owner waits for it.

A point is of the first `seq` events of a journal. It stands unless a later rewind went back to before one of the steps
that those events had planned; points that do not stand are made again.
"""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from replay_service.ledger import restoring
from replay_service.ledger.curve_points import CORPUS, ESTIMATE_ROW, CurvePoint, PointTable, Rewind
from replay_service.ledger.damaged_journals import CONTENT_ERRORS
from replay_service.ledger.journal import Journal
from replay_service.ledger.progress import Point
from replay_service.ledger.recently_used import RecentlyUsed
from replay_service.ledger.records import Entry
from replay_service.sampling.events import Created, Event, Reported, Rewound
from replay_service.sampling.fold import fold_all
from replay_service.sampling.forgetting import FirstVisits, Forgetting
from replay_service.sampling.run_state import RunState

MOST_DOMAINS: Final = 32
"""Curves of so many domains are kept: of the largest ones."""
DOMAINS_EVERY: Final = 4
"""Domains have fewer reports and longer windows than the corpus, so they are estimated at every fourth point."""
MOST_RUNS_KEPT: Final = 16
WORK_S: Final = 1.0
"""For how long one look folds and estimates; the next one goes on from there."""

_PER_WINDOW: Final = 4
"""Points within the window of an estimate, which changes little in between."""
_PER_RUN: Final = 500
"""Steps between two points are at least this part of the steps so far, so that their number grows as a logarithm."""
_EVENTS_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Curves:
    """The points of a run, in the order of their steps.

    Attributes:
        as_of: the number of the last event that they know.
        is_whole: whether that was the last one of the run; else the next look goes on.
    """

    as_of: int
    attempt: int
    is_whole: bool
    points: list[CurvePoint]


@dataclass(slots=True, eq=False)
class _Tracked:
    """A run as far as it was folded here."""

    incarnation: str
    attempt: int
    rewinds: list[Rewind]
    state: RunState
    seq: int
    """How many events are folded, or forgotten by a rewind."""
    points: list[CurvePoint]
    reported: int = -1
    """The latest step that was reported."""
    due: int = 0
    """The next point is made when this step, or a later one, was reported."""
    tail: CurvePoint | None = None
    """Of the last event that was folded; it is not kept in the table."""

    def curves(self, end_seq: int) -> Curves:
        """What was found of a journal that ends before `end_seq`."""
        points = [*self.points, *([] if self.tail is None else [self.tail])]
        return Curves(self.seq - 1, self.attempt, self.seq == end_seq, points)


@dataclass(slots=True, eq=False)
class _Kept:
    lock: threading.Lock = field(default_factory=threading.Lock)
    tracked: _Tracked | None = None


class CurveReader:
    """Reads the curves of runs, and brings them up to date before. It needs no lease of a run.

    Args:
        most_runs: of how many runs the state is kept; those that were looked at last.
        monotonic: a clock, seconds.
    """

    def __init__(
        self,
        journal: Journal,
        most_runs: int = MOST_RUNS_KEPT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._table = PointTable(journal.engine)
        self._monotonic = monotonic
        self._kept = RecentlyUsed(most_runs, _Kept)

    def read(self, run: str, work_s: float = WORK_S) -> Curves:
        """The curves of a run.

        Args:
            work_s: for how long to fold, seconds.

        Raises:
            UnknownRun: when there is no such run.
        """
        kept = self._kept.get(run)
        with kept.lock:
            while True:
                point = self._journal.point(run)
                # Nothing is kept of a fold that fails half-way.
                tracked, kept.tracked = kept.tracked, None
                try:
                    tracked = self._brought_up(tracked, run, point, self._monotonic() + work_s)
                except CONTENT_ERRORS as error:
                    # Of a run that was deleted and created again meanwhile, what was read need not fit together.
                    if self._journal.point(run).incarnation == point.incarnation:
                        raise self._journal.damaged.note(run, point.incarnation, error) from error
                    continue
                if self._journal.point(run).incarnation == point.incarnation:
                    kept.tracked = tracked
                    return tracked.curves(point.end_seq)

    def _brought_up(self, tracked: _Tracked | None, run: str, point: Point, ends_at: float) -> _Tracked:
        """A run with its points up to a point of its journal, or as far as the time allows."""
        if tracked is None or (tracked.incarnation, tracked.attempt) != (_text_of(point), point.attempt):
            tracked = self._resumed(run, point)
        num_before = len(tracked.points)
        if tracked.seq < point.end_seq:
            # Closed where the time is over before its end: it holds a connection.
            with closing(self._journal.entries(run, tracked.seq, end_seq=point.end_seq)) as entries:
                self._fold(tracked, entries, point.end_seq, ends_at)
            tail = _point_of(tracked, with_domains=True)
            tracked.tail = None if tail is None else tail[0]
        self._table.keep(run, tracked.incarnation, tracked.points[num_before:])
        return tracked

    def _resumed(self, run: str, point: Point) -> _Tracked:
        """A run as it was at its latest point that stands."""
        rewinds = [
            (entry.seq, entry.event.step)
            for entry in self._journal.entries(run, kinds=["rewound"], end_seq=point.end_seq)
        ]
        points = self._table.standing(run, _text_of(point), rewinds, point.end_seq)
        seq = points[-1].seq if points else 1
        state = restoring.latest(self._journal, self._journal.run(run), seq).state
        tracked = _Tracked(_text_of(point), point.attempt, rewinds, state, seq, points)
        if points:
            tracked.reported = max([state.recent.origin, *state.held])
            tracked.due = _due_after(points[-1], state.forgetting())
        return tracked

    def _fold(self, tracked: _Tracked, entries: Iterable[Entry], end_seq: int, ends_at: float) -> None:
        """Fold events up to before `end_seq`, or until the time is over, and make the points that are due.

        A point is made before the first report of a step, when all that came before it is folded. So it does not matter
        how often somebody looks.
        """
        held: list[Event] = []
        for entry in entries:
            event = entry.event
            is_new_step = isinstance(event, Reported) and event.step > tracked.reported
            is_due = is_new_step and tracked.reported >= tracked.due
            if is_due or len(held) == _EVENTS_AT_ONCE:
                fold_all(tracked.state, held)
                held, tracked.seq = [], entry.seq
                if is_due:
                    _make_point(tracked)
                if self._monotonic() >= ends_at:
                    return
            if not isinstance(event, Created | Rewound) and _stands(entry, tracked.rewinds):
                held.append(event)
                if is_new_step:
                    tracked.reported = event.step
        fold_all(tracked.state, held)
        tracked.seq = end_seq


def _stands(entry: Entry, rewinds: list[Rewind]) -> bool:
    return all(entry.event.step <= step for seq, step in rewinds if seq > entry.seq)


def _make_point(tracked: _Tracked) -> None:
    """Make a point, if anything was reported since the last one that plans may know."""
    made = _point_of(tracked, with_domains=len(tracked.points) % DOMAINS_EVERY == 0)
    if made is not None:
        point, corpus = made
        tracked.points.append(point)
        tracked.due = _due_after(point, corpus)


def _due_after(point: CurvePoint, present: Forgetting) -> int:
    """The step of the next point, at least."""
    return point.step + max(1, present.window_steps // _PER_WINDOW, point.next_step // _PER_RUN)


def _point_of(tracked: _Tracked, with_domains: bool) -> tuple[CurvePoint, Forgetting] | None:
    """The estimates of a state, and the corpus's whole; None where nothing was reported since the last point."""
    state = tracked.state
    visits = state.first_visits()
    if not len(visits.reports) or (tracked.points and visits.step <= tracked.points[-1].step):
        return None
    groups = _largest(visits) if with_domains else []
    found = list(zip([CORPUS, *groups], visits.of_corpus_and(groups), strict=True))
    trained = state.trained.counts
    point = CurvePoint(
        seq=tracked.seq,
        step=visits.step,
        next_step=state.next_step,
        injection_ratio=float(state.config.schedule.at(state.next_step, state.ratio)),
        achieved_ratio=trained.num_rehearsed_rows / trained.num_rows if trained.num_rows else None,
        estimates=_rows_of(found),
    )
    return point, found[0][1]


def _largest(visits: FirstVisits) -> list[int]:
    """The domains that have curves."""
    sizes = visits.sizes.reshape(-1, visits.num_quantiles).sum(axis=1)
    largest: list[int] = np.sort(np.argsort(-sizes, kind="stable")[:MOST_DOMAINS]).tolist()
    return largest


def _rows_of(found: list[tuple[int, Forgetting]]) -> np.ndarray:
    rows = np.empty(len(found), dtype=ESTIMATE_ROW)
    for row, (group, each) in zip(rows, found, strict=True):
        ends = each.nats, each.low, each.high
        row["group"] = group
        row["nats"], row["low"], row["high"] = (np.nan if end is None else end for end in ends)
    return rows


def _text_of(point: Point) -> str:
    """The incarnation of a run as a column holds it."""
    number, created_at = point.incarnation
    return f"{number}/{created_at}"[:64]
