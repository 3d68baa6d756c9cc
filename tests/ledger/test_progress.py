"""How far runs are, in columns: also of runs that an earlier schema held."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

import replay_service.ledger.database as database
from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import UnknownRun
from replay_service.ledger.database import open_database
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.ledger.records import RunOverview
from replay_service.ledger.samples import SampleQuery, SampleStatistics
from replay_service.sampling.events import Adopted, Trained
from replay_service.sampling.state_bytes import to_bytes
from replay_service.sampling.trained import TrainedCounts
from tests.ledger.test_audit import a_long_run
from tests.ledger.test_readers import counted, train
from tests.ledger.worlds import ids_of, losses_of, open_journal, owner_of, read_state, record_of, write


def told(overview: RunOverview) -> tuple[object, ...]:
    point = overview.point
    return point.end_seq, point.attempt, overview.next_step, overview.closed, overview.generation, overview.config


def known(owner: RunOwner, journal: Journal) -> tuple[object, ...]:
    """The same, as the owner's state and the journal tell it."""
    end_seq, attempt = journal.end_seq(owner.record.run), owner.attempt
    return read_state(
        owner, lambda state: (end_seq, attempt, state.next_step, state.closed, state.generation, state.config)
    )


CHANGES: list[Callable[[RunOwner], object]] = [
    lambda owner: None,
    lambda owner: train(owner, 0, 5),
    lambda owner: owner.configure({"floor": 0.4, "injection_ratio": "0.5"}),
    lambda owner: train(owner, 5, 3),
    lambda owner: owner.configure({"policy": "uniform"}),
    lambda owner: owner.close(),
    lambda owner: owner.rewind(6),
    lambda owner: owner.rewind(2),
    lambda owner: train(owner, 3, 2),
    lambda owner: owner.close(),
    lambda owner: owner.rewind(-1),
]


def test_the_columns_tell_what_the_state_tells(journal_of_a_run: Journal, corpus: Corpus) -> None:
    owner = owner_of(journal_of_a_run, corpus)
    for change in CHANGES:
        change(owner)
        assert told(journal_of_a_run.overview("tuning")) == known(owner, journal_of_a_run)
    assert journal_of_a_run.overviews(["tuning"]) == [journal_of_a_run.overview("tuning")]


def test_the_columns_tell_of_an_adopted_generation(journal_of_a_run: Journal) -> None:
    write(journal_of_a_run, "tuning", 1, [Adopted(-1, 2, (20, 25, 20, 20))])
    assert journal_of_a_run.overview("tuning").generation == 2


def test_of_a_run_that_nobody_created_there_is_neither_overview_nor_point(journal_of_a_run: Journal) -> None:
    assert record_of().created.step == -1, "before the first"
    for look in (journal_of_a_run.overview, journal_of_a_run.point, journal_of_a_run.run):
        with pytest.raises(UnknownRun, match="'nobody'"):
            look("nobody")
    assert journal_of_a_run.overviews(["nobody"]) == []


def test_a_point_is_that_of_the_latest_event(journal_of_a_run: Journal, corpus: Corpus) -> None:
    owner = owner_of(journal_of_a_run, corpus)
    for change in CHANGES:
        change(owner)
        assert journal_of_a_run.point("tuning") == journal_of_a_run.overview("tuning").point


def test_the_times_of_the_latest_plan_report_and_training_are_those_of_their_commits(
    tmp_path: Path, corpus: Corpus
) -> None:
    ticks = itertools.count(1000)
    journal = Journal(open_database(f"sqlite:///{tmp_path / 'ledger.db'}"), lambda: next(ticks))
    journal.create_run(record_of())
    owner, told_times = owner_of(journal, corpus), []
    for change in (
        lambda: owner.configure({"floor": 0.4}),
        lambda: owner.window(0, 1, 8),
        lambda: owner.report(losses_of(0, ids_of(owner.window(0, 1, 8).plans[0]))),
        lambda: owner.count_trained(Trained(0, 0, 0, TrainedCounts(16, 4, 160, 40))),
        lambda: owner.window(1, 1, 8),
    ):
        change()
        point = journal.point("tuning")
        told_times.append((point.planned_at, point.reported_at, point.trained_at))
    journal.close()
    assert told_times == [
        (None, None, None),
        (1002, None, None),
        (1002, 1003, None),
        (1002, 1003, 1004),
        (1005, 1003, 1004),
    ]


def test_a_list_of_runs_is_two_queries_however_many_there_are(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'ledger.db'}")
    journal = Journal(engine)
    for i in range(50):
        journal.create_run(record_of(f"run-{i:02}"))
    with counted(engine) as statements:
        heads = journal.heads()
        overviews = journal.overviews([each.run for each in heads])
    assert [each.head for each in overviews] == heads and len(heads) == 50
    assert len(statements) == 2
    journal.close()


def change_schema(engine: Engine, change: Callable[[Config, str], None], revision: str) -> None:
    """Bring a database to a revision of the schema."""
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).with_name("migrations")))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        change(config, revision)
        connection.commit()


def samples_of(journal: Journal, corpus: Corpus) -> list[SampleStatistics]:
    return journal.samples("tuning", SampleQuery("sample_id", False, 1000), corpus.partition).samples


@pytest.mark.parametrize("life", [a_long_run, None])
def test_runs_of_the_first_schema_are_as_they_were(
    database_url: str, corpus: Corpus, life: Callable[[Journal, Corpus], RunOwner] | None
) -> None:
    with open_journal(database_url) as journal:
        journal.create_run(record_of())
        owner = owner_of(journal, corpus) if life is None else life(journal, corpus)
        overview, state, samples = journal.overview("tuning"), read_state(owner, to_bytes), samples_of(journal, corpus)
    engine = open_database(database_url)
    change_schema(engine, command.downgrade, "0001")
    engine.dispose()
    with open_journal(database_url) as journal:
        assert told(journal.overview("tuning")) == told(overview)
        assert {each.committed_at for each in journal.entries("tuning")} == {None}
        point = journal.point("tuning")
        assert (point.planned_at, point.reported_at, point.incarnation[0]) == (None, None, None)
        assert samples_of(journal, corpus) == samples
        again = owner_of(journal, corpus)
        assert read_state(again, to_bytes) == state
        again.rewind(-1)
        train(again, 0, 2)
        assert told(journal.overview("tuning")) == known(again, journal)
        assert None not in {each.committed_at for each in journal.entries("tuning", overview.point.end_seq)}
