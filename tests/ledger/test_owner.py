import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import InvalidReport, JournalUnavailable, RunTaken, StepOutOfRange
from replay_service.ledger.audit import verify
from replay_service.ledger.intake import ReportOutcome
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.sampling.events import Trained
from replay_service.sampling.trained import TrainedCounts
from replay_service.wire.losses import LOSS_ROW
from tests.ledger.worlds import (
    bytes_of,
    events_of,
    ids_of,
    image_of,
    losses_of,
    open_journal,
    owner_of,
    read_state,
    record_of,
)
from tests.sampling.worlds import same_plan

AHEAD = 64


@pytest.fixture
def journal(database_url: str) -> Iterator[Journal]:
    with open_journal(database_url) as journal:
        journal.create_run(record_of(report_window_steps=6))
        yield journal


@pytest.fixture
def owner(journal: Journal, corpus: Corpus) -> RunOwner:
    return owner_of(journal, corpus)


def test_a_plan_never_changes_once_it_was_asked_for(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    first = owner.window(0, 4, AHEAD).plans
    owner.report(losses_of(0, ids_of(first[0]), num_flips=11))
    assert all(map(same_plan, owner.window(0, 4, AHEAD).plans, first))
    assert all(map(same_plan, owner_of(journal, corpus).window(0, 4, AHEAD).plans, first))


def test_trained_rows_count_once_and_are_durable(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    counts = TrainedCounts(8, 2, 80, 20)
    owner.window(0, 8, AHEAD)
    assert owner.count_trained(Trained(3, 0, 0, counts))
    assert not owner.count_trained(Trained(3, 0, 0, counts))
    assert not owner.count_trained(Trained(5, 0, 3, counts))
    assert not owner.count_trained(Trained(5, 0, 4, counts), attempt=9)
    assert owner.count_trained(Trained(5, 0, 4, counts), attempt=1)
    assert owner.count_trained(Trained(5, 1, 0, counts))
    assert read_state(owner, lambda state: state.trained.counts) == TrainedCounts(24, 6, 240, 60)
    assert read_state(owner_of(journal, corpus), lambda state: state.trained.counts) == TrainedCounts(24, 6, 240, 60)


def test_a_rewind_forgets_the_rows_of_later_steps(owner: RunOwner) -> None:
    counts = TrainedCounts(8, 2, 80, 20)
    owner.window(0, 8, AHEAD)
    for first in (0, 4):
        owner.count_trained(Trained(first + 3, 0, first, counts))
    owner.rewind(3)
    assert read_state(owner, lambda state: (state.trained.counts, state.trained.next_step)) == (counts, {0: 4})
    assert not owner.count_trained(Trained(7, 0, 4, counts), attempt=1)
    assert owner.count_trained(Trained(7, 0, 4, counts), attempt=2)


def test_asking_again_writes_nothing(owner: RunOwner, journal: Journal) -> None:
    owner.window(0, 4, AHEAD)
    owner.window(1, 2, AHEAD)
    assert journal.num_events("tuning") == 5


def test_a_window_far_ahead_plans_every_step_before_it(owner: RunOwner, journal: Journal) -> None:
    assert [plan.step for plan in owner.window(10, 2, AHEAD).plans] == [10, 11]
    assert [plan.step for plan in journal.planned("tuning", 0, 100)] == list(range(12))


@pytest.mark.parametrize(("first_step", "num_steps"), [(-1, 1), (-5, 10), (64, 1), (0, 65), (10**12, 1)])
def test_a_step_out_of_range_plans_nothing(owner: RunOwner, journal: Journal, first_step: int, num_steps: int) -> None:
    before = image_of(owner)
    with pytest.raises(StepOutOfRange) as refusal:
        owner.window(first_step, num_steps, AHEAD)
    assert refusal.value.extensions == {"next_step": 0}
    assert image_of(owner) == before
    assert journal.num_events("tuning") == 1


def test_the_last_step_within_reach_is_planned(owner: RunOwner) -> None:
    owner.window(0, AHEAD, AHEAD)
    assert read_state(owner, lambda state: state.next_step) == AHEAD
    owner.window(2 * AHEAD - 1, 1, AHEAD)
    with pytest.raises(StepOutOfRange):
        owner.window(3 * AHEAD, 1, AHEAD)


def test_a_report_is_folded_in_with_the_base_losses_of_the_corpus(owner: RunOwner, corpus: Corpus) -> None:
    (plan,) = owner.window(0, 1, AHEAD).plans
    ids = ids_of(plan)
    assert owner.report(losses_of(0, ids, loss=3.0)) == ReportOutcome(len(ids), 0, 0)
    totals = read_state(owner, lambda state: state.totals)
    assert totals.samples.sum() == len(ids)
    assert totals.tokens.sum() == 11 * len(ids)
    expected = (3.0 - corpus.base_results(np.array(ids)).loss_nats).sum()
    assert totals.excess_nats.sum() == pytest.approx(expected)


def test_a_report_sent_twice_counts_once(owner: RunOwner, journal: Journal) -> None:
    (plan,) = owner.window(0, 1, AHEAD).plans
    report = losses_of(0, ids_of(plan))
    owner.report(report)
    before, num_events = image_of(owner), journal.num_events("tuning")
    assert owner.report(report) == ReportOutcome(0, len(report), 0)
    assert image_of(owner) == before
    assert journal.num_events("tuning") == num_events


def test_a_report_sent_twice_counts_once_across_a_restart(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    (plan,) = owner.window(0, 1, AHEAD).plans
    report = losses_of(0, ids_of(plan))
    owner.report(report[:1])
    assert owner_of(journal, corpus).report(report) == ReportOutcome(len(report) - 1, 1, 0)


def test_a_sample_that_two_ranks_report_in_one_request_counts_once(owner: RunOwner) -> None:
    (plan,) = owner.window(0, 1, AHEAD).plans
    ids = ids_of(plan)
    both = np.concatenate([losses_of(0, ids, rank=1, loss=5.0), losses_of(0, ids, rank=0, loss=1.0)])
    assert owner.report(both) == ReportOutcome(len(ids), len(ids), 0)
    assert read_state(owner, lambda state: state.totals.samples.sum()) == len(ids)
    assert read_state(owner, lambda state: state.totals.loss_nats.sum()) == pytest.approx(5.0 * len(ids))


def test_one_request_may_report_many_steps_and_ranks(owner: RunOwner, journal: Journal) -> None:
    plans = owner.window(0, 3, AHEAD).plans
    rows = np.concatenate(
        [losses_of(plan.step, [each], rank=i) for plan in plans for i, each in enumerate(ids_of(plan))]
    )
    shuffled = rows[np.random.default_rng(0).permutation(len(rows))]
    assert owner.report(shuffled).accepted == len(rows)
    assert read_state(owner, lambda state: state.pending) == {}
    reports = [(event.step, event.rank) for event in events_of(journal)[3:]]
    assert reports == sorted({(int(row["step"]), int(row["rank"])) for row in rows})


def test_an_empty_report_changes_nothing(owner: RunOwner, journal: Journal) -> None:
    owner.window(0, 1, AHEAD)
    assert owner.report(np.empty(0, dtype=LOSS_ROW)) == ReportOutcome(0, 0, 0)
    assert journal.num_events("tuning") == 2


def test_a_report_after_the_window_is_rejected(owner: RunOwner, journal: Journal) -> None:
    early, *_ = owner.window(0, 7, AHEAD).plans
    before, num_events = image_of(owner), journal.num_events("tuning")
    assert owner.report(losses_of(0, ids_of(early))) == ReportOutcome(0, 0, len(ids_of(early)))
    assert image_of(owner) == before
    assert journal.num_events("tuning") == num_events


def test_a_report_in_the_last_step_of_the_window_is_accepted(owner: RunOwner) -> None:
    early, *_ = owner.window(0, 6, AHEAD).plans
    assert owner.report(losses_of(0, ids_of(early))) == ReportOutcome(len(ids_of(early)), 0, 0)


def test_late_and_timely_rows_of_one_request_are_told_apart(owner: RunOwner) -> None:
    plans = owner.window(0, 8, AHEAD).plans
    early, timely = losses_of(0, ids_of(plans[0])), losses_of(7, ids_of(plans[7]))
    outcome = owner.report(np.concatenate([early, timely, timely[:1]]))
    assert outcome == ReportOutcome(len(timely), 1, len(early))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss_nats", math.nan),
        ("loss_nats", math.inf),
        ("loss_nats", -math.inf),
        ("loss_nats", 1e300),
        ("num_tokens", 0),
        ("num_tokens", -3),
        ("num_flips", -1),
        ("num_flips", 12),
        ("rank", -1),
        ("step", 2),
        ("step", -1),
        ("step", 2**62),
        ("sample_id", -1),
        ("sample_id", 999 << 32),
    ],
)
def test_a_bad_row_fails_the_whole_report_and_changes_nothing(
    owner: RunOwner, journal: Journal, field: str, value: float
) -> None:
    plans = owner.window(0, 2, AHEAD).plans
    rows = np.concatenate([losses_of(plan.step, ids_of(plan)) for plan in plans])
    good = rows.copy()
    rows[field][-1] = value
    before, num_events = image_of(owner), journal.num_events("tuning")
    with pytest.raises(InvalidReport):
        owner.report(rows)
    assert image_of(owner) == before
    assert journal.num_events("tuning") == num_events
    assert owner.report(good).accepted == len(good)


def test_a_sample_of_another_step_was_not_planned_for_this_one(owner: RunOwner) -> None:
    first, second = owner.window(0, 2, AHEAD).plans
    strangers = sorted(set(ids_of(second)) - set(ids_of(first)))
    with pytest.raises(InvalidReport, match=str(strangers[0])):
        owner.report(losses_of(0, strangers))


def test_the_refusal_names_the_rows_at_fault(owner: RunOwner) -> None:
    (plan,) = owner.window(0, 1, AHEAD).plans
    with pytest.raises(InvalidReport, match="loss_nats") as refusal:
        owner.report(losses_of(0, ids_of(plan), loss=[1.0, math.nan, 1.0, math.nan]))
    assert refusal.value.extensions == {"rows": [1, 3]}


def test_the_state_after_a_restart_is_the_state_before_it(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    for plan in owner.window(0, 9, AHEAD).plans[4:]:
        owner.report(losses_of(plan.step, ids_of(plan)[::2], num_flips=plan.step % 4))
    restarted = owner_of(journal, corpus)
    assert image_of(restarted) == image_of(owner)
    assert all(map(same_plan, restarted.window(9, 5, AHEAD).plans, owner_of(journal, corpus).window(9, 5, AHEAD).plans))


def test_a_commit_that_fails_changes_nothing_and_the_owner_goes_on(
    owner: RunOwner, corpus: Corpus, journal: Journal, database_url: str
) -> None:
    (plan,) = owner.window(0, 1, AHEAD).plans
    before = bytes_of(owner)
    with out_of_order(database_url):
        with pytest.raises(JournalUnavailable):
            owner.window(1, 3, AHEAD)
        with pytest.raises(SQLAlchemyError):
            owner.report(losses_of(0, ids_of(plan)))
    assert bytes_of(owner) == before
    assert owner.report(losses_of(0, ids_of(plan))).accepted == len(ids_of(plan))
    assert bytes_of(owner) == bytes_of(owner_of(journal, corpus))


@contextmanager
def out_of_order(database_url: str) -> Iterator[None]:
    """A database that cannot be written meanwhile."""
    engine = create_engine(database_url)
    for before, after in (("events", "gone"), ("gone", "events")):
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {before} RENAME TO {after}"))
        if after == "gone":
            yield
    engine.dispose()


def together(owner: RunOwner, database_url: str, reports: list[np.ndarray]) -> list[Future[ReportOutcome]]:
    """Report from as many threads, all of which wait for the database before the first is answered."""
    rival = create_engine(database_url)
    with ThreadPoolExecutor(len(reports)) as pool, rival.connect() as connection:
        connection.execute(text("UPDATE runs SET owner_epoch = owner_epoch"))
        waiting = []
        for i, rows in enumerate(reports):
            waiting.append(pool.submit(owner.report, rows))
            while len(owner._combiner._waiting) < i:
                time.sleep(0.001)
        connection.commit()
    rival.dispose()
    return waiting


def test_reports_that_come_together_are_durable_by_one_commit(owner: RunOwner, database_url: str) -> None:
    plans = owner.window(0, 6, AHEAD).plans
    commits: list[object] = []
    engine = owner._journal._engine

    def count(connection: object) -> None:
        commits.append(connection)

    event.listen(engine, "commit", count)
    waiting = together(owner, database_url, [losses_of(plan.step, ids_of(plan)) for plan in plans])
    event.remove(engine, "commit", count)
    assert sum(each.result().accepted for each in waiting) == sum(len(ids_of(plan)) for plan in plans)
    assert len(commits) <= 3


def test_of_reports_that_come_together_a_wrong_one_is_refused_alone(
    owner: RunOwner, database_url: str, corpus: Corpus, journal: Journal
) -> None:
    plans = owner.window(0, 3, AHEAD).plans
    first, *reports = [losses_of(plan.step, ids_of(plan), rank=plan.step) for plan in plans]
    wrong = np.concatenate([reports[0], losses_of(99, [1])])
    outcomes = together(owner, database_url, [first, reports[0][:1], wrong, *reports, reports[1]])
    assert outcomes[0].result() == ReportOutcome(len(first), 0, 0)
    assert outcomes[1].result() == ReportOutcome(1, 0, 0)
    assert isinstance(outcomes[2].exception(), InvalidReport)
    assert outcomes[3].result() == ReportOutcome(len(reports[0]) - 1, 1, 0)
    assert outcomes[4].result() == ReportOutcome(len(reports[1]), 0, 0)
    assert outcomes[5].result() == ReportOutcome(0, len(reports[1]), 0)
    assert bytes_of(owner_of(journal, corpus)) == bytes_of(owner)
    assert verify(journal, journal.run("tuning")).holds


def test_reports_of_many_threads_leave_the_state_that_the_journal_tells(
    owner: RunOwner, corpus: Corpus, journal: Journal
) -> None:
    plans = owner.window(0, 24, AHEAD).plans[18:]
    reports = [
        losses_of(plan.step, [each], rank=rank, loss=0.1 * rank + plan.step, num_flips=rank)
        for plan in plans
        for rank, each in enumerate(ids_of(plan))
    ]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(owner.report, reports * 2))
    assert sum(each.accepted for each in outcomes) == sum(each.duplicate for each in outcomes) == len(reports)
    assert bytes_of(owner_of(journal, corpus)) == bytes_of(owner)


def test_of_two_owners_of_a_run_the_second_writer_fails(owner: RunOwner, journal: Journal, corpus: Corpus) -> None:
    rival = owner_of(journal, corpus)
    promised = rival.window(0, 2, AHEAD).plans
    for _ in range(2):
        with pytest.raises(RunTaken):
            owner.window(3, 1, AHEAD)
    with pytest.raises(RunTaken):
        owner.report(losses_of(0, ids_of(promised[0])))
    assert all(map(same_plan, journal.planned("tuning", 0, 9), promised))
    assert image_of(owner_of(journal, corpus)) == image_of(rival)
