from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from replay_service.ledger.database import Durability, open_database
from replay_service.ledger.schema import metadata


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
