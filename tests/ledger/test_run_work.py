"""An owner's work as it tells a meter of it."""

from collections import Counter
from typing import Any

import numpy as np

from replay_service.corpus.reading.reader import Corpus
from replay_service.ledger.intake import ReportOutcome
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.ledger.run_work import MOST_STEPS, RunWork
from replay_service.sampling.events import PLANNED_ROW, REPORTED_ROW, Planned, Reported


class Told:
    """A meter that keeps what it is told."""

    def __init__(self) -> None:
        self.num_taken = 0
        self.phases: list[tuple[str, float]] = []
        self.outcomes: Counter[str] = Counter()
        self.delays: list[float] = []

    def committed(self, seconds: float) -> None: ...

    def took(self) -> None:
        self.num_taken += 1

    def spent(self, phase: str, seconds: float) -> None:
        self.phases.append((phase, seconds))

    def counted(self, run: str, outcome: str, num: int) -> None:
        assert run == "tune"
        self.outcomes[outcome] += num

    def reported_after(self, run: str, seconds: float) -> None:
        self.delays.append(seconds)


def planned(step: int, num: int = 4) -> Planned:
    return Planned(step, 1, 0, np.zeros(num, dtype=PLANNED_ROW))


def reported(step: int, num_tokens: list[int]) -> Reported:
    rows = np.zeros(len(num_tokens), dtype=REPORTED_ROW)
    rows["num_tokens"] = num_tokens
    return Reported(step, 0, rows)


def work_at(now: list[float]) -> tuple[RunWork, Told]:
    told: Any = Told()
    return RunWork("tune", told, lambda: now[0]), told


def test_an_owner_tells_that_it_took_its_run(journal_of_a_run: Journal, corpus: Corpus) -> None:
    told: Any = Told()
    RunOwner(journal_of_a_run, "tuning", lambda _: corpus, meter=told)
    assert told.num_taken == 1


def test_samples_are_counted_by_their_outcome() -> None:
    """Those that were not measured are told by the run's state, with those that were never reported."""
    work, told = work_at([0.0])
    work.committed([planned(0), planned(1, 3)])
    work.committed([reported(0, [9, 0, 9])])
    work.sorted_out([ReportOutcome(3, 0, 0), ReportOutcome(0, 2, 5)])
    assert told.outcomes == {"planned": 7, "reported": 2, "duplicate": 2, "rejected": 5}


def test_a_report_is_as_late_as_its_plan_is_old_and_of_an_unknown_plan_nothing_is_told() -> None:
    now = [100.0]
    work, told = work_at(now)
    work.committed([planned(0)])
    now[0] = 107.5
    work.committed([reported(0, [9]), reported(99, [9])])
    assert told.delays == [7.5]


def test_the_times_of_phases_are_told_whatever_happens_in_them() -> None:
    now = [1.0]
    work, told = work_at(now)
    began = work.now()
    now[0] = 3.0
    work.waited(began)
    try:
        with work.phase("plan"):
            now[0] = 8.0
            raise KeyError
    except KeyError:
        pass
    assert told.phases == [("lock", 2.0), ("plan", 5.0)]


def test_memory_is_bounded_however_many_steps_are_never_reported() -> None:
    work, told = work_at([0.0])
    for step in range(MOST_STEPS + 10):
        work.committed([planned(step)])
    work.committed([reported(9, [1]), reported(10, [1])])
    assert len(told.delays) == 1
