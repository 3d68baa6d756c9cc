"""The end of a job: who says it, and what takes it back."""

from collections.abc import Callable

import pytest

from replay_service.corpus.reading.reader import Corpus
from replay_service.ledger import audit
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from tests.ledger.test_readers import train
from tests.ledger.worlds import bytes_of, events_of, owner_of, read_state


@pytest.fixture
def owner(journal_of_a_run: Journal, corpus: Corpus) -> RunOwner:
    """The owner of a run with ten planned and reported steps."""
    owner = owner_of(journal_of_a_run, corpus)
    train(owner, 0, 10)
    return owner


def is_finished(owner: RunOwner, journal: Journal) -> bool:
    """As the state tells it; the columns of the list tell the same."""
    known = read_state(owner, lambda state: (state.is_finished, state.job_end, state.next_step))
    head = journal.overview("tuning").head
    assert (head.next_step <= head.job_end, head.job_end, head.next_step) == known
    return known[0]


def test_a_job_says_once_that_it_has_ended(owner: RunOwner, journal_of_a_run: Journal, corpus: Corpus) -> None:
    assert not is_finished(owner, journal_of_a_run)
    owner.finish(10)
    num_events = len(events_of(journal_of_a_run))
    assert is_finished(owner, journal_of_a_run)
    owner.finish(10)
    assert len(events_of(journal_of_a_run)) == num_events
    assert bytes_of(owner_of(journal_of_a_run, corpus)) == bytes_of(owner)
    assert audit.verify(journal_of_a_run, owner.record).holds


@pytest.mark.parametrize(
    ("num_steps", "change", "stays"),
    [
        (10, lambda owner: train(owner, 10, 1), False),
        (7, lambda owner: train(owner, 10, 1), False),
        (12, lambda owner: train(owner, 10, 2), True),
        (12, lambda owner: train(owner, 10, 3), False),
        (10, lambda owner: owner.configure({"floor": 0.3}), True),
        (10, lambda owner: owner.rewind(9), True),
        (10, lambda owner: owner.rewind(8), False),
        (7, lambda owner: owner.rewind(6), False),
        (10, lambda owner: owner.rewind(-1), False),
    ],
    ids=lambda each: str(each) if isinstance(each, int) else "",
)
def test_a_later_plan_or_a_rewind_takes_it_back(
    owner: RunOwner,
    journal_of_a_run: Journal,
    num_steps: int,
    change: Callable[[RunOwner], object],
    stays: bool,
) -> None:
    owner.finish(num_steps)
    assert is_finished(owner, journal_of_a_run)
    change(owner)
    assert is_finished(owner, journal_of_a_run) is stays
    assert audit.verify(journal_of_a_run, owner.record).holds


def test_a_rewind_to_the_end_of_a_job_finds_it_ended(owner: RunOwner, journal_of_a_run: Journal) -> None:
    owner.finish(10)
    train(owner, 10, 5)
    assert not is_finished(owner, journal_of_a_run)
    owner.rewind(9)
    assert is_finished(owner, journal_of_a_run)


def test_a_job_that_was_rewound_away_says_nothing(owner: RunOwner, journal_of_a_run: Journal) -> None:
    owner.rewind(4)
    owner.finish(10, attempt=1)
    assert not is_finished(owner, journal_of_a_run)
    owner.finish(5, attempt=2)
    assert is_finished(owner, journal_of_a_run)
