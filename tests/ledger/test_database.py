import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text

from replay_service.ledger.database import (
    Durability,
    QuickLook,
    UnusableDatabase,
    check_clock,
    open_database,
    prepare_database,
)
from replay_service.ledger.schema import metadata, runs
from tests.support import free_port


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 10000)]
)
def test_every_connection_to_sqlite_is_durable_and_strict(tmp_path: Path, pragma: str, value: object) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'ledger.db'}")
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            assert connection.execute(text(f"PRAGMA {pragma}")).scalar_one() == value
    engine.dispose()


def test_opening_a_database_again_keeps_what_is_in_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO runs (run, corpus, created_at, owner_epoch) VALUES ('r', 'c', 'now', 0)"))
    engine.dispose()
    again = open_database(url)
    with again.connect() as connection:
        assert connection.execute(text("SELECT run FROM runs")).scalars().all() == ["r"]
    again.dispose()


def test_the_migrations_make_the_tables_that_the_code_knows(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'ledger.db'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_processes_that_open_a_new_database_at_once_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with ThreadPoolExecutor(8) as pool:
        for engine in pool.map(open_database, [url] * 8):
            engine.dispose()


@pytest.mark.parametrize(("durability", "value"), [("full", 2), ("relaxed", 1)])
def test_durability_is_a_setting(tmp_path: Path, durability: Durability, value: int) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'ledger.db'}", durability)
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == value
    engine.dispose()


def test_the_connection_of_quick_looks_is_given_to_nobody_else(database_url: str) -> None:
    engine = open_database(database_url)
    look = QuickLook(select(func.count()).select_from(runs), engine)
    with engine.connect() as other:
        assert look.scalar({}) == look.scalar({}) == 0
        held = look._connection
        with engine.connect() as another:
            others = {id(each.connection.driver_connection) for each in (other, another)}
    assert held is look._connection and id(held) not in others
    look.close()
    engine.dispose()


def test_a_database_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(UnusableDatabase, match="see the setting database_url") as refused:
        prepare_database(f"postgresql+psycopg://replay:hidden@127.0.0.1:{free_port()}/replay", timeout_s=1.0)
    assert "refused" in refused.value.detail and "hidden" not in refused.value.detail


def test_a_database_of_a_kind_that_nobody_knows_is_refused_with_what_is_wrong() -> None:
    with pytest.raises(UnusableDatabase, match=r"Can't load plugin: .*nosuch; see the setting database_url"):
        prepare_database("nosuch://replay@127.0.0.1/replay")


def test_a_database_whose_folder_is_not_there_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits for a folder"))
    with pytest.raises(UnusableDatabase, match="unable to open database file; see the setting database_url"):
        prepare_database(f"sqlite:///{tmp_path / 'nowhere' / 'journal.sqlite'}")


def test_a_database_of_a_newer_release_is_refused(database_url: str) -> None:
    engine = open_database(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(UnusableDatabase, match="was used by a newer release"):
        prepare_database(database_url)


@pytest.mark.parametrize(("ahead_s", "said"), [(3600.0, "3,600 s ahead of"), (-3600.0, "3,600 s behind")])
def test_a_clock_an_hour_from_that_of_the_database_is_refused_with_the_remedy(
    postgresql_database: str, ahead_s: float, said: str
) -> None:
    check_clock(postgresql_database)
    check_clock(postgresql_database, clock=lambda: time.time() + ahead_s / 100)
    with pytest.raises(UnusableDatabase, match=rf"the clock of this host is {said} that of the database.*\(NTP\)"):
        check_clock(postgresql_database, clock=lambda: time.time() + ahead_s)


def test_a_clock_is_not_compared_with_that_of_a_database_that_does_not_answer() -> None:
    with pytest.raises(UnusableDatabase, match="see the setting database_url"):
        check_clock(f"postgresql+psycopg://replay@127.0.0.1:{free_port()}/replay", timeout_s=1.0)
