"""Events as operators read them: with their times, and what they changed."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import UnknownRun
from replay_service.ledger.database import open_database
from replay_service.ledger.event_log import Change, read_page
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.sampling.events import Adjusted, Adopted, Rewound
from replay_service.sampling.state_bytes import to_bytes
from tests.ledger.worlds import ids_of, losses_of, open_journal, owner_of, read_state, record_of, write

AUTO = {"injection_ratio": "auto", "budget": {"nats": 0.05}}


@pytest.fixture
def journal(database_url: str) -> Iterator[Journal]:
    """A journal whose clock tells 1000, 1001, ... at every commit, with a run that has just been created."""
    ticks = itertools.count(1000)
    journal = Journal(open_database(database_url), lambda: next(ticks))
    journal.create_run(record_of())
    yield journal
    journal.close()


@pytest.fixture
def owner(journal: Journal, corpus: Corpus) -> RunOwner:
    return owner_of(journal, corpus)


def changes_in(journal: Journal, run: str = "tuning") -> list[dict[str, Change]]:
    return [each.changes for each in read_page(journal, run, -1, 1000).events if each.changes]


def test_every_event_bears_the_time_of_its_commit(journal: Journal, owner: RunOwner) -> None:
    plans = owner.window(0, 3, 64).plans
    owner.report(losses_of(0, ids_of(plans[0])))
    owner.configure({"floor": 0.4})
    owner.rewind(0)
    owner.close()
    times = [each.entry.committed_at for each in read_page(journal, "tuning", -1, 100).events]
    assert times == [1000, 1001, 1001, 1001, 1002, 1003, 1004, 1005]


def test_times_are_not_folded(owner: RunOwner, corpus: Corpus, tmp_path: Path) -> None:
    with open_journal(tmp_path / "other.db") as other:
        other.create_run(record_of())
        states = []
        for each in (owner, owner_of(other, corpus)):
            (plan,) = each.window(0, 1, 64).plans
            each.report(losses_of(0, ids_of(plan)))
            states.append(read_state(each, to_bytes))
    assert states[0] == states[1]


def test_a_change_says_what_it_changed(journal: Journal, owner: RunOwner) -> None:
    owner.configure({"floor": 0.4, "schedule": {"curve": "linear", "num_steps": 100}, "injection_ratio": "0.5"})
    first, *_ = changes_in(journal)
    assert first["injection_ratio"] == Change("0.25", "0.5")
    assert first["floor"].after == 0.4
    assert first["schedule.curve"] == Change("constant", "linear")
    assert not {"seed", "policy", "global_batch_size"} & set(first)


def test_a_change_after_a_rewind_is_told_against_what_stands(journal: Journal, owner: RunOwner) -> None:
    owner.configure({"floor": 0.2})
    owner.window(0, 4, 64)
    owner.configure({"floor": 0.4})
    owner.rewind(1)
    owner.configure({"floor": 0.7})
    assert [each["floor"] for each in changes_in(journal)][1:] == [Change(0.2, 0.4), Change(0.2, 0.7)]


def test_an_adopted_generation_is_told(journal: Journal) -> None:
    write(journal, "tuning", 1, [Adopted(-1, 2, (20, 25, 20, 20)), Adopted(-1, 4, (20, 25, 30, 20))])
    assert changes_in(journal) == [{"generation": Change(1, 2)}, {"generation": Change(2, 4)}]


def test_ratios_of_the_controller_are_told_with_the_ones_before(journal: Journal) -> None:
    journal.create_run(record_of("auto", **AUTO))
    begun = journal.run("auto").config
    events = [Adjusted(-1, "0.05", "too much"), Adjusted(3, "0.1", "still"), Rewound(0), Adjusted(0, "0.2", "more")]
    write(journal, "auto", 1, events)
    found = [each["injection_ratio"] for each in changes_in(journal, "auto")]
    assert [each.after for each in found] == ["0.05", "0.1", "0.2"]
    assert [each.before for each in found[1:]] == ["0.05", "0.05"]
    assert float(str(found[0].before)) == float(begun.ratio)
    assert [each.entry.event for each in read_page(journal, "auto", 0, 1, ["adjusted"]).events] == events[:1]


def test_pages_hold_every_event_once_in_order(journal: Journal, owner: RunOwner) -> None:
    for floor in (0.2, 0.3, 0.4):
        owner.configure({"floor": floor})
        owner.window(0, round(floor * 10), 64)
    owner.rewind(1)
    owner.close()
    for limit in (1, 3, 7, 1000):
        for kinds in (None, ["configured"], ["planned", "rewound"], ["closed"], ["sealed"]):
            check_pages(journal, limit, kinds)


def check_pages(journal: Journal, limit: int, kinds: list[str] | None) -> None:
    whole = read_page(journal, "tuning", -1, 1000, kinds)
    after, paged = -1, []
    while after != whole.as_of:
        page = read_page(journal, "tuning", after, limit, kinds)
        paged += page.events
        after = page.next_after
    assert [each.entry.seq for each in paged] == [each.entry.seq for each in whole.events]
    assert [each.changes for each in paged] == [each.changes for each in whole.events]
    every = [each.entry for each in read_page(journal, "tuning", -1, 1000).events]
    wanted = [each.seq for each in every if kinds is None or type(each.event).__name__.lower() in kinds]
    assert [each.entry.seq for each in paged] == wanted


def test_an_unknown_run_has_no_events(journal: Journal) -> None:
    with pytest.raises(UnknownRun):
        read_page(journal, "nobody", -1, 10)
