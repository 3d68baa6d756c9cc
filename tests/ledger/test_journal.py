from dataclasses import replace

import numpy as np
import pytest

from replay_service.errors import JournalUnavailable, RunExists, UnknownRun
from replay_service.ledger.journal import Journal
from replay_service.sampling.events import Planned, Reported
from tests.ledger.worlds import events_of, open_journal, record_of, write
from tests.sampling.worlds import plan_by_hand, report_of, same_plan


@pytest.fixture
def journal(journal_of_a_run: Journal) -> Journal:
    return journal_of_a_run


def test_a_run_is_read_back_as_it_was_created(journal: Journal) -> None:
    assert journal.run("tuning") == record_of()


def test_a_journal_begins_with_the_creation_of_its_run(journal: Journal) -> None:
    assert [(entry.seq, entry.event) for entry in journal.entries("tuning")] == [(0, record_of().created)]


def test_runs_are_listed_by_name(journal: Journal) -> None:
    journal.create_run(record_of("another"))
    assert [record.run for record in journal.runs()] == ["another", "tuning"]


def test_a_name_is_taken_once(journal: Journal) -> None:
    with pytest.raises(RunExists, match="tuning"):
        journal.create_run(replace(record_of(), corpus="books"))
    assert journal.run("tuning").corpus == "wiki"


def test_a_run_that_was_never_created_is_unknown(journal: Journal) -> None:
    with pytest.raises(UnknownRun, match="nobody"):
        journal.run("nobody")


def test_events_are_read_back_in_order_and_to_the_byte(journal: Journal) -> None:
    plan, report = plan_by_hand(0, [7, 2**40], [1, 0]), report_of(0, [2**40], rank=3, loss=0.1)
    write(journal, "tuning", 1, [plan, report])
    write(journal, "tuning", 3, [plan_by_hand(1, [], [])])
    first, second, third = events_of(journal)
    assert isinstance(first, Planned)
    assert same_plan(first, plan)
    assert isinstance(second, Reported)
    assert (second.step, second.rank, second.rows.tobytes()) == (0, 3, report.rows.tobytes())
    assert isinstance(third, Planned)
    assert len(third.rows) == 0


def test_events_outlive_the_process_that_wrote_them(journal: Journal, database_url: str) -> None:
    write(journal, "tuning", 1, [plan_by_hand(0, [1], [0])])
    with open_journal(database_url) as later:
        assert len(list(events_of(later))) == later.num_events("tuning") - 1 == 1


def test_runs_do_not_see_each_others_events(journal: Journal) -> None:
    journal.create_run(record_of("another"))
    write(journal, "tuning", 1, [plan_by_hand(0, [1], [0])])
    assert events_of(journal, "another") == []
    assert journal.planned("another", 0, 5) == []
    write(journal, "another", 1, [plan_by_hand(0, [2], [0])])
    assert [journal.num_events(run) for run in ("tuning", "another")] == [2, 2]


def test_plans_of_a_window_come_in_step_order_without_reports(journal: Journal) -> None:
    plans = [plan_by_hand(step, [step], [0]) for step in range(6)]
    write(journal, "tuning", 1, [*plans[:3], report_of(1, [1]), *plans[3:]])
    window = journal.planned("tuning", 2, 3)
    assert [plan.step for plan in window] == [2, 3, 4]
    assert all(same_plan(plan, plans[plan.step]) for plan in window)
    assert [plan.step for plan in journal.planned("tuning", 4, 100)] == [4, 5]


def test_a_number_that_is_taken_fails_the_whole_append(journal: Journal) -> None:
    write(journal, "tuning", 1, [plan_by_hand(0, [1], [0]), plan_by_hand(1, [2], [0])])
    with pytest.raises(JournalUnavailable):
        write(journal, "tuning", 2, [plan_by_hand(2, [3], [0]), plan_by_hand(3, [4], [0])])
    assert [plan.step for plan in journal.planned("tuning", 0, 10)] == [0, 1]


def test_a_step_is_planned_once_whatever_the_number_of_the_event(journal: Journal) -> None:
    write(journal, "tuning", 1, [plan_by_hand(0, [1], [0])])
    with pytest.raises(JournalUnavailable):
        write(journal, "tuning", 2, [report_of(0, [1]), plan_by_hand(0, [9], [0])])
    assert journal.num_events("tuning") == 2


def test_events_of_a_run_that_was_never_created_are_refused(journal: Journal) -> None:
    with pytest.raises(UnknownRun):
        write(journal, "nobody", 1, [plan_by_hand(0, [1], [0])])


def test_rows_of_a_journal_survive_as_arrays_that_can_be_reckoned_with(journal: Journal) -> None:
    write(journal, "tuning", 1, [plan_by_hand(0, [5, 6], [1, 2])])
    (plan,) = journal.planned("tuning", 0, 1)
    assert np.sum(plan.rows["sample_id"]) == 11


def test_a_file_is_embedded_and_a_server_is_not(journal_of_a_run: Journal, database_url: str) -> None:
    assert journal_of_a_run.is_embedded == database_url.startswith("sqlite")
