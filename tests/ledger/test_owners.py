from collections.abc import Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from replay_service.corpus.reading.reader import CorpusStore
from replay_service.errors import CorpusReplaced, InvalidRun, RunExists, RunTaken, UnknownCorpus, UnknownRun
from replay_service.ledger.journal import Journal
from replay_service.ledger.owners import Owners, Ownership
from tests.ledger.test_fence import Clock
from tests.ledger.worlds import create, image_of, open_journal, record_of
from tests.sampling.worlds import same_plan
from tests.support import make_corpus


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    folder = tmp_path_factory.mktemp("corpora")
    make_corpus(folder, "wiki")
    make_corpus(folder, "books", seed=1)
    return CorpusStore(folder)


@pytest.fixture
def journal(database_url: str) -> Iterator[Journal]:
    with open_journal(database_url) as journal:
        yield journal


@pytest.fixture
def owners(journal: Journal, corpora: CorpusStore) -> Owners:
    return Owners(journal, corpora.get)


def test_a_new_run_is_created_once(owners: Owners, journal: Journal) -> None:
    assert create(owners, record_of())
    assert not create(owners, record_of())
    assert len(journal.runs()) == 1


def test_asking_for_the_same_run_later_is_asking_for_the_same_run(owners: Owners, journal: Journal) -> None:
    create(owners, record_of())
    created = journal.run("tuning")
    assert not create(owners, replace(record_of(), created_at="2027-01-01T00:00:00Z"))
    assert journal.run("tuning") == created


def test_a_name_with_another_configuration_is_taken(owners: Owners, journal: Journal) -> None:
    create(owners, record_of())
    created = journal.run("tuning")
    for other in (record_of(seed=4), record_of(policy="uniform"), replace(record_of(), corpus="books")):
        with pytest.raises(RunExists, match="another configuration"):
            create(owners, other)
    assert journal.run("tuning") == created


def test_a_run_that_began_on_another_corpus_of_the_name_is_not_the_same_run(
    owners: Owners, journal: Journal, corpora: CorpusStore
) -> None:
    create(owners, record_of())
    with pytest.raises(CorpusReplaced):
        create(Owners(journal, lambda _: corpora.get("books")), record_of())


@pytest.mark.parametrize(("batch", "ratio"), [(81, "1"), (162, "0.5"), (1000, "0.0805")])
def test_a_step_that_rehearses_more_than_the_corpus_holds_is_refused(
    owners: Owners, journal: Journal, batch: int, ratio: str
) -> None:
    with pytest.raises(InvalidRun, match="80 samples"):
        create(owners, record_of(global_batch_size=batch, injection_ratio=ratio))
    assert journal.runs() == []


def test_a_step_may_rehearse_all_that_the_corpus_holds(owners: Owners) -> None:
    assert create(owners, record_of(global_batch_size=80, injection_ratio="1"))
    (plan,) = owners.get("tuning").window(0, 1, 1).plans
    assert len(plan.rows) == 80


def test_a_run_on_a_corpus_that_is_not_there_is_refused(owners: Owners, journal: Journal) -> None:
    with pytest.raises(UnknownCorpus):
        create(owners, replace(record_of(), corpus="nowhere"))
    assert journal.runs() == []


def test_a_run_that_was_never_created_is_unknown(owners: Owners) -> None:
    with pytest.raises(UnknownRun, match="nobody"):
        owners.get("nobody")


def test_a_run_has_one_owner(owners: Owners) -> None:
    create(owners, record_of())
    assert owners.get("tuning") is owners.get("tuning")


def test_it_is_told_who_owns_a_run_and_how_often_it_came_back_in_the_last_ten_minutes(
    journal: Journal, corpora: CorpusStore
) -> None:
    clock = Clock()
    one, other = (Owners(journal, corpora.get, monotonic=clock) for _ in range(2))
    create(one, record_of())
    with capture_logs() as logs:
        for clock.now in (0.0, 100.0, 400.0):
            one.get("tuning").configure({"floor": 0.1 + clock.now / 1000})
            epoch = other.get("tuning").epoch
            assert one.ownership("tuning", epoch).is_elsewhere and not other.ownership("tuning", epoch).is_elsewhere
            with pytest.raises(RunTaken):
                one.get("tuning").window(0, 1, 8)
            other.get("tuning")
            one.get("tuning")
            with pytest.raises(RunTaken):
                other.get("tuning").window(0, 1, 8)
    assert [log["event"] for log in logs] == ["took the run back from another process"] * 5
    assert not one.ownership("tuning", one.get("tuning").epoch).is_elsewhere
    for clock.now, times in ((400.0, 3), (700.0, 2), (1000.0, 1), (1000.5, 0)):
        assert one.ownership("tuning", 0) == Ownership(False, times)
    assert one.ownership("another", 0) == Ownership()


def test_runs_of_a_service_that_starts_again_go_on(owners: Owners, journal: Journal, corpora: CorpusStore) -> None:
    create(owners, record_of())
    plans = owners.get("tuning").window(0, 5, 64).plans
    later = Owners(journal, corpora.get)
    assert image_of(later.get("tuning")) == image_of(owners.get("tuning"))
    assert all(map(same_plan, later.get("tuning").window(0, 5, 64).plans, plans))


def test_runs_on_one_corpus_with_other_seeds_draw_other_samples(owners: Owners) -> None:
    create(owners, record_of("one"))
    create(owners, record_of("two", seed=99))
    (left,), (right,) = (owners.get(run).window(0, 1, 64).plans for run in ("one", "two"))
    assert not same_plan(left, right)
