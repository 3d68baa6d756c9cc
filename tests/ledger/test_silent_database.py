"""A PostgreSQL server that no longer answers, though its connections stay open."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from structlog.testing import capture_logs

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import JournalUnavailable
from replay_service.ledger.database import open_database
from replay_service.ledger.journal import Journal
from tests.gateway.worlds import ask, assert_problem, batch_of, client_on, create_run, losses_of, report
from tests.ledger.worlds import open_journal, owner_of, read_state, record_of
from tests.proxy import NO_FAULT, FaultyProxy
from tests.support import make_corpus

TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Silencing:
    """A database behind a proxy that can fall silent."""

    proxy: FaultyProxy
    url: str
    """By way of the proxy."""
    direct_url: str


@pytest.fixture
def silencing(postgresql_database: str) -> Iterator[Silencing]:
    direct = make_url(postgresql_database)
    assert direct.host is not None and direct.port is not None
    with FaultyProxy((direct.host, direct.port), lambda: NO_FAULT) as proxy:
        url = direct.set(port=proxy.port).render_as_string(hide_password=False)
        yield Silencing(proxy, url, postgresql_database)


@pytest.fixture
def engine(silencing: Silencing) -> Iterator[Engine]:
    engine = open_database(silencing.url, timeout_s=TIMEOUT_S)
    yield engine
    silencing.proxy.speak()
    engine.dispose()


@pytest.fixture
def journal(engine: Engine) -> Iterator[Journal]:
    journal = Journal(engine)
    yield journal
    journal.close()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("statement_timeout", "1s"),
        ("lock_timeout", "1s"),
        ("idle_in_transaction_session_timeout", "1s"),
        ("tcp_user_timeout", "15000"),
        ("tcp_keepalives_idle", "5"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "2"),
        ("synchronous_commit", "on"),
    ],
)
def test_every_session_has_limits(engine: Engine, setting: str, value: str) -> None:
    with engine.connect() as first, engine.connect() as second:
        for session in (first, second):
            assert session.execute(text(f"SHOW {setting}")).scalar_one() == value


def test_the_client_gives_up_a_host_that_is_lost(engine: Engine) -> None:
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        given = driver.info.get_parameters()
    limits = ("connect_timeout", "tcp_user_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count")
    assert [given[name] for name in limits] == ["1", "15000", "5", "5", "2"]


USES: list[Callable[[Journal], object]] = [
    lambda journal: journal.runs(),
    lambda journal: journal.ping(),
    lambda journal: journal.planned("tuning", 0, 4),
    lambda journal: journal.take("tuning"),
    lambda journal: journal.create_run(record_of("another")),
    lambda journal: journal.snapshots("tuning"),
]


@pytest.mark.parametrize("use", USES)
def test_whatever_is_asked_of_a_silent_database_ends_and_goes_on_when_it_speaks(
    silencing: Silencing, journal: Journal, use: Callable[[Journal], object]
) -> None:
    journal.create_run(record_of())
    silencing.proxy.fall_silent()
    with pytest.raises(SQLAlchemyError):
        use(journal)
    silencing.proxy.speak()
    use(journal)


def test_no_session_is_waited_for_without_end(silencing: Silencing, engine: Engine) -> None:
    engine.dispose()
    silencing.proxy.fall_silent()
    with pytest.raises(OperationalError):
        engine.connect()
    silencing.proxy.speak()
    engine.connect().close()


def test_a_commit_ends_and_the_owner_goes_on(silencing: Silencing, journal: Journal, corpus: Corpus) -> None:
    journal.create_run(record_of())
    owner = owner_of(journal, corpus)
    (plan,) = owner.window(0, 1, 64).plans
    silencing.proxy.fall_silent()
    with capture_logs(), pytest.raises((JournalUnavailable, SQLAlchemyError)):
        owner.window(1, 1, 64)
    with pytest.raises((JournalUnavailable, SQLAlchemyError)):
        read_state(owner, lambda state: state.next_step)
    silencing.proxy.speak()
    assert len(owner.window(0, 2, 64).plans) == 2
    assert owner.window(0, 1, 64).plans[0].rows.tobytes() == plan.rows.tobytes()


def test_a_session_that_is_lost_in_a_transaction_holds_no_run(silencing: Silencing, engine: Engine) -> None:
    with open_journal(silencing.direct_url) as another:
        another.create_run(record_of())
        with engine.connect() as lost:
            lost.execute(text("UPDATE runs SET owner_epoch = owner_epoch"))
            silencing.proxy.fall_silent()
            assert taken_in_the_end(another)
            silencing.proxy.speak()
            with pytest.raises(DBAPIError):
                lost.execute(text("SELECT 1"))
            lost.invalidate()


def taken_in_the_end(journal: Journal) -> bool:
    for _ in range(20):
        try:
            journal.take("tuning")
            return True
        except OperationalError:
            continue
    return False


def test_a_service_says_that_its_database_is_silent_and_goes_on_when_it_speaks(
    tmp_path: Path, silencing: Silencing
) -> None:
    make_corpus(tmp_path / "corpora")
    with capture_logs(), client_on(tmp_path, database_url=silencing.url, database_timeout_s=TIMEOUT_S) as client:
        create_run(client)
        rows = losses_of(batch_of(client, 0, 4))
        silencing.proxy.fall_silent()
        assert_silent(client)
        silencing.proxy.speak()
        assert report(client, rows).json()["accepted"] == len(rows)
        batch_of(client, 0, 8)
        assert is_ready_in_the_end(client)


def assert_silent(client: TestClient) -> None:
    slow = assert_problem(client.get("/readyz"), 503)
    assert "journal" in slow["detail"]
    for answer in (ask(client, step=4), client.get("/v1/runs")):
        assert_problem(answer, 503, "journal-unavailable")
    assert_problem(client.get("/readyz"), 503)
    assert client.get("/healthz").status_code == 200


def is_ready_in_the_end(client: TestClient) -> bool:
    return any(client.get("/readyz").status_code == 200 for _ in range(200))
