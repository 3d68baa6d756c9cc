"""Fenced mode: plans that do not depend on when reports come."""

import random
import re
from collections.abc import Iterator

import pytest

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import AwaitingReports, StepOutOfRange
from replay_service.ledger import audit
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import OwnerLimits, RunOwner
from tests.ledger.worlds import bytes_of, ids_of, losses_of, open_journal, record_of

LAG = 3


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def journal(database_url: str) -> Iterator[Journal]:
    with open_journal(database_url) as journal:
        yield journal


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fenced(journal: Journal, corpus: Corpus, clock: Clock, run: str = "tuning") -> RunOwner:
    """A new run, or one that is opened again."""
    if run not in [record.run for record in journal.runs()]:
        journal.create_run(record_of(run, policy="mix_cd", feedback={"mode": "fenced", "lag": LAG}, floor=0.0))
    limits = OwnerLimits(snapshot_every=7, seal_after_s=60.0)
    return RunOwner(journal, run, lambda _: corpus, limits, clock)


def a_life(owner: RunOwner, seed: int) -> list[bytes]:
    """Twenty steps; reports of a step come in an order and in pieces that depend on the seed, as late as they may."""
    rng = random.Random(seed)
    plans: list[bytes] = []
    waiting: list[tuple[int, int]] = []
    for step in range(20):
        rng.shuffle(waiting)
        due = [each for each in waiting if each[0] <= step - LAG or rng.random() < 0.5]
        for planned_step, sample in due:
            flips = (sample * 7 + planned_step) % 11
            owner.report(losses_of(planned_step, [sample], num_flips=flips))
        waiting = [each for each in waiting if each not in due]
        (plan,) = owner.window(step, 1, 100).plans
        plans.append(plan.rows.tobytes())
        waiting += [(step, sample) for sample in ids_of(plan)]
    return plans


def test_plans_do_not_depend_on_when_and_in_which_order_reports_come(
    journal: Journal, corpus: Corpus, clock: Clock
) -> None:
    lives = [a_life(fenced(journal, corpus, clock, f"life-{seed}"), seed) for seed in range(4)]
    assert all(life == lives[0] for life in lives)


def test_plans_learn_from_reports(journal: Journal, corpus: Corpus, clock: Clock) -> None:
    learned = a_life(fenced(journal, corpus, clock), 0)
    journal.create_run(record_of("uniform", policy="uniform"))
    blind = RunOwner(journal, "uniform", lambda _: corpus)
    unlearned = [plan.rows["sample_id"].tobytes() for plan in blind.window(0, 20, 100).plans]
    assert learned != unlearned


def test_a_plan_waits_for_the_reports_that_it_may_know(journal: Journal, corpus: Corpus, clock: Clock) -> None:
    owner = fenced(journal, corpus, clock)
    plans = owner.window(0, LAG, 100).plans
    before = bytes_of(owner)
    with pytest.raises(AwaitingReports) as refusal:
        owner.window(LAG, 1, 100)
    assert refusal.value.extensions["awaited_steps"] == [0]
    assert re.fullmatch(
        f"the plan of step {LAG} of run '.*' waits for the reports of 1 earlier steps; they are sealed without them "
        "after .* s",
        refusal.value.detail,
    )
    assert bytes_of(owner) == before
    owner.report(losses_of(0, ids_of(plans[0])))
    assert len(owner.window(LAG, 1, 100).plans) == 1
    with pytest.raises(AwaitingReports):
        owner.window(LAG + 1, 1, 100)


def test_what_was_planned_is_served_without_waiting(journal: Journal, corpus: Corpus, clock: Clock) -> None:
    owner = fenced(journal, corpus, clock)
    owner.window(0, LAG, 100)
    assert len(owner.window(0, LAG, 100).plans) == LAG


def test_a_window_that_would_wait_for_itself_is_refused(journal: Journal, corpus: Corpus, clock: Clock) -> None:
    owner = fenced(journal, corpus, clock)
    with pytest.raises(StepOutOfRange, match="at most 3 steps at once") as refusal:
        owner.window(0, LAG + 1, 100)
    assert refusal.value.extensions["next_step"] == 0


def test_where_a_controller_may_raise_the_ratio_no_step_counts_as_empty(journal: Journal, corpus: Corpus) -> None:
    """Of the first 62 steps none holds a row by the ratio to begin with."""
    auto = {"injection_ratio": "auto", "budget": {"first_ratio": "0.001"}, "feedback": {"mode": "fenced", "lag": LAG}}
    journal.create_run(record_of("auto", **auto))
    owner = RunOwner(journal, "auto", lambda _: corpus)
    with pytest.raises(StepOutOfRange, match="at most 3 steps at once"):
        owner.window(0, LAG + 1, 100)
    assert [len(plan.rows) for plan in owner.window(0, LAG, 100).plans] == [0] * LAG


def test_steps_that_rehearse_nothing_are_planned_at_once_however_many_they_are(
    journal: Journal, corpus: Corpus, clock: Clock
) -> None:
    """Every tenth step holds a row, from the ninth on."""
    journal.create_run(
        record_of("seldom", injection_ratio="0.1", global_batch_size=1, feedback={"mode": "fenced", "lag": LAG})
    )
    owner = RunOwner(journal, "seldom", lambda _: corpus)
    assert [len(plan.rows) for plan in owner.window(8, LAG + 1, 100).plans] == [0, 1, 0, 0]
    with pytest.raises(AwaitingReports):
        owner.window(19, 1, 100)
    (_, plan, *_) = owner.window(8, LAG + 1, 100).plans
    owner.report(losses_of(9, ids_of(plan)))
    with pytest.raises(StepOutOfRange, match="at most 3 steps at once"):
        owner.window(22, 1, 100)
    assert len(owner.window(21, 1, 100).plans[0].rows) == 0
    assert audit.verify(journal, owner.record).holds


def test_a_report_that_never_comes_is_sealed_after_a_while(journal: Journal, corpus: Corpus, clock: Clock) -> None:
    owner = fenced(journal, corpus, clock)
    first, *_ = owner.window(0, LAG, 100).plans
    owner.report(losses_of(0, ids_of(first)[:1]))
    for clock.now in (1000.0, 1059.0):
        with pytest.raises(AwaitingReports):
            owner.window(LAG, 1, 100)
    clock.now = 1060.0
    assert len(owner.window(LAG, 1, 100).plans) == 1
    late = owner.report(losses_of(0, ids_of(first)))
    assert (late.accepted, late.rejected) == (0, len(ids_of(first)))
    assert bytes_of(fenced(journal, corpus, clock)) == bytes_of(owner)
    assert audit.verify(journal, owner.record).holds


def test_what_was_reported_before_is_a_duplicate_unless_its_step_was_sealed(
    journal: Journal, corpus: Corpus, clock: Clock
) -> None:
    owner = fenced(journal, corpus, clock)
    ids = [ids_of(plan) for plan in owner.window(0, LAG, 100).plans]
    owner.report(losses_of(0, ids[0][1:]))
    owner.report(losses_of(1, ids[1]))
    with pytest.raises(AwaitingReports):
        owner.window(LAG, 1, 100)
    clock.now = 60.0
    owner.window(LAG, 1, 100)
    sealed, whole = owner.report(losses_of(0, ids[0])), owner.report(losses_of(1, ids[1]))
    assert (sealed.accepted, sealed.duplicate, sealed.rejected) == (0, 0, len(ids[0]))
    assert (whole.accepted, whole.duplicate, whole.rejected) == (0, len(ids[1]), 0)


def test_a_fenced_run_restores_and_rewinds_to_the_byte(journal: Journal, corpus: Corpus, clock: Clock) -> None:
    owner = fenced(journal, corpus, clock)
    a_life(owner, 0)
    assert bytes_of(fenced(journal, corpus, clock)) == bytes_of(owner)
    again = fenced(journal, corpus, clock)
    again.rewind(9)
    for step in range(10 - LAG, 10):
        (plan,) = again.window(step, 1, 100).plans
        again.report(losses_of(step, ids_of(plan)))
    assert len(again.window(10, 1, 100).plans) == 1
    assert audit.verify(journal, owner.record).holds
