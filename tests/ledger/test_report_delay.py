"""The delay of reports, from the times of events."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from replay_service.corpus.reading.reader import Corpus
from replay_service.ledger.database import open_database
from replay_service.ledger.event_times import EventTime
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.ledger.report_delay import ReportDelay, delays_of, report_delay, unanswered_by
from tests.ledger.worlds import ids_of, losses_of, owner_of, read_state, record_of

FIRST_MS = 1_700_000_000_000
PLANNED, REPORTED, REWOUND = "planned", "reported", "rewound"


def times_of(*events: tuple[str, int, float | None]) -> list[EventTime]:
    return [EventTime(kind, step, None if at is None else round(1000 * at)) for kind, step, at in events]


@pytest.mark.parametrize(
    ("events", "pending", "expected"),
    [
        ([], set(), []),
        ([(PLANNED, 0, 1.0), (REPORTED, 0, 3.5)], set(), [2.5]),
        ([(PLANNED, 0, 1.0), (REPORTED, 0, 3.5)], {0}, []),
        ([(PLANNED, 0, 1.0), (REPORTED, 0, 3.0), (REPORTED, 0, 7.0)], set(), [6.0]),
        ([(REPORTED, 0, 3.5), (PLANNED, 1, 4.0), (REPORTED, 1, 5.0)], set(), [1.0]),
        ([(PLANNED, 0, None), (REPORTED, 0, 3.5)], set(), []),
        ([(PLANNED, 0, 9.0), (REPORTED, 0, 3.5)], set(), [0.0]),
        (
            [(PLANNED, 0, 1.0), (PLANNED, 1, 1.0), (REPORTED, 0, 2.0), (REPORTED, 1, 2.0), (REWOUND, 0, 3.0)],
            set(),
            [1.0],
        ),
        ([(PLANNED, 5, 1.0), (REWOUND, 4, 2.0), (PLANNED, 5, 3.0), (REPORTED, 5, 4.5)], set(), [1.5]),
    ],
)
def test_a_delay_is_from_the_plan_to_the_last_report(
    events: list[tuple[str, int, float | None]], pending: set[int], expected: list[float]
) -> None:
    assert delays_of(times_of(*events), pending) == expected


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], set()),
        ([(PLANNED, 0, 1.0), (PLANNED, 1, 2.0), (PLANNED, 2, 8.0)], {0, 1}),
        ([(PLANNED, 0, 1.0), (PLANNED, 1, 2.0), (REPORTED, 0, 3.0), (PLANNED, 2, 4.0)], {2}),
        ([(PLANNED, 0, None), (PLANNED, 1, 2.0), (REWOUND, 0, 3.0), (PLANNED, 1, 9.0)], set()),
    ],
)
def test_steps_that_nobody_has_reported_since_the_last_report(
    events: list[tuple[str, int, float | None]], expected: set[int]
) -> None:
    assert unanswered_by(times_of(*events), 5000.0) == expected
    assert unanswered_by([each._replace(has_rows=False) for each in times_of(*events)], 5000.0) == set()


@pytest.fixture
def world(tmp_path: Path, corpus: Corpus) -> tuple[Journal, RunOwner]:
    """A run whose events are committed a second apart: ten steps planned one by one, each reported after its plan."""
    seconds = count()
    journal = Journal(open_database(f"sqlite:///{tmp_path / 'ledger.db'}"), lambda: FIRST_MS + 1000 * next(seconds))
    journal.create_run(record_of(report_window_steps=64))
    owner = owner_of(journal, corpus)
    for step in range(10):
        (plan,) = owner.window(step, 1, 10).plans
        owner.report(losses_of(step, ids_of(plan)))
    return journal, owner


def delay_at(world: tuple[Journal, RunOwner], now_s: float) -> ReportDelay:
    journal, owner = world
    pending = read_state(owner, lambda state: sorted(state.pending))
    return report_delay(journal.times, "tuning", journal.point("tuning"), pending, FIRST_MS + round(1000 * now_s))


def test_steps_that_wait_for_longer_than_usual_are_late(world: tuple[Journal, RunOwner]) -> None:
    journal, owner = world
    assert delay_at(world, 1e6) == ReportDelay(1.0, 1.0, 0)
    owner.window(10, 3, 10)  # in the 21st second
    assert delay_at(world, 80) == ReportDelay(1.0, 1.0, 0)
    assert delay_at(world, 82) == ReportDelay(1.0, 1.0, 3)
    plans = owner.window(13, 3, 10).plans  # in the 22nd
    assert delay_at(world, 81.5).late_steps == 3
    assert delay_at(world, 83).late_steps == 6
    owner.report(losses_of(13, ids_of(plans[0])))
    assert delay_at(world, 83).late_steps == 5
    owner.rewind(9)
    assert delay_at(world, 1e6).late_steps == 0
    journal.close()


def test_plans_that_were_made_again_are_as_old_as_they_are(world: tuple[Journal, RunOwner]) -> None:
    _, owner = world
    owner.window(10, 3, 10)
    owner.rewind(9)  # in the 22nd second
    owner.window(10, 3, 10)
    assert (delay_at(world, 82.9).late_steps, delay_at(world, 84).late_steps) == (0, 3)


def test_a_slow_job_is_not_late(world: tuple[Journal, RunOwner]) -> None:
    journal, owner = world
    plans = owner.window(10, 1, 10).plans
    journal._committer._clock = lambda: FIRST_MS + 900_000
    owner.report(losses_of(10, ids_of(plans[0])))
    owner.window(11, 1, 10)
    delay = delay_at(world, 1500)
    assert delay.p50_s == 1.0 and delay.p95_s is not None and delay.p95_s > 400
    assert delay.late_steps == 0
    assert delay_at(world, 2700) == replace(delay, late_steps=1)


def test_steps_that_were_given_up_since_the_last_report_are_late_too(world: tuple[Journal, RunOwner]) -> None:
    _, owner = world
    plans = [plan for step in range(10, 100) for plan in owner.window(step, 1, 10).plans]
    assert read_state(owner, lambda state: min(state.pending)) > 10
    assert delay_at(world, 1e6).late_steps == 90
    owner.report(losses_of(99, ids_of(plans[-1])))
    assert delay_at(world, 1e6).late_steps == read_state(owner, lambda state: len(state.pending)) < 64
