"""Plans that are in memory are given to whoever asks, whatever else goes on."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import RunTaken
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.ledger.plan_windows import RecentPlans, Window
from replay_service.sampling.events import Planned
from tests.ledger.worlds import open_journal, owner_of, read_state, record_of
from tests.sampling.worlds import same_plan

AHEAD = 64


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with open_journal(tmp_path / "ledger") as journal:
        journal.create_run(record_of())
        yield journal


def test_nobody_waits_for_whoever_holds_the_owner(journal: Journal, corpus: Corpus) -> None:
    owner = owner_of(journal, corpus)
    plans = owner.window(0, 4, AHEAD).plans
    with ThreadPoolExecutor(1) as threads:
        held, let_go = threading.Event(), threading.Event()
        holding = threads.submit(read_state, owner, lambda _state: (held.set(), let_go.wait(30)))
        assert held.wait(30)
        window = owner.window_at_hand(1, 3)
        let_go.set()
        holding.result()
    assert window is not None
    assert not window.is_new
    assert all(map(same_plan, window.plans, plans[1:]))
    assert owner.window_at_hand(1, 4) is None


def test_an_owner_whose_run_was_taken_gives_nothing(journal: Journal, corpus: Corpus) -> None:
    owner = owner_of(journal, corpus)
    owner.window(0, 1, AHEAD)
    owner_of(journal, corpus)
    with pytest.raises(RunTaken):
        owner.window_at_hand(0, 1)
    assert owner.window_at_hand(0, 1) is None


def test_plans_are_those_of_the_attempt_that_they_are_said_to_be_of(journal: Journal, corpus: Corpus) -> None:
    """Attempts plan other samples here, since each begins with another ratio."""
    owner, found, is_over = owner_of(journal, corpus), list[Window](), threading.Event()

    def look() -> None:
        while not is_over.is_set():
            window = owner.window_at_hand(0, 3)
            if window is not None:
                found.append(window)

    by_attempt = {}
    with ThreadPoolExecutor(2) as threads:
        lookers = [threads.submit(look) for _ in range(2)]
        try:
            for number in range(1, 41):
                owner.configure({"injection_ratio": f"0.{number + 10}"})
                by_attempt[owner.attempt] = owner.window(0, 3, AHEAD).plans
                owner.rewind(-1)
        finally:
            is_over.set()
        for each in lookers:
            each.result()
    assert found
    for window in found:
        assert all(map(same_plan, window.plans, by_attempt[window.attempt]))
    assert len({np.concatenate([plan.rows for plan in plans]).tobytes() for plans in by_attempt.values()}) > 1


class RewindsMeanwhile(RecentPlans):
    """Finds plans, and lets another thread rewind the run before it gives them."""

    def __init__(self, owner: RunOwner) -> None:
        super().__init__()
        self._owner = owner

    def find(self, first_step: int, num_steps: int) -> list[Planned] | None:
        plans = super().find(first_step, num_steps)
        with ThreadPoolExecutor(1) as threads:
            threads.submit(self._owner.rewind, -1).result()
        return plans


def test_plans_of_before_a_rewind_are_not_given_after_it(journal: Journal, corpus: Corpus) -> None:
    owner = owner_of(journal, corpus)
    plans = owner.window(0, 4, AHEAD).plans
    recent = RewindsMeanwhile(owner)
    recent.add(plans)
    owner._recent = recent
    assert owner.window_at_hand(0, 4) is None
    assert owner.attempt == 2
