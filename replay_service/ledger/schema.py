"""The tables of the ledger."""

from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("corpus", String(64), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("config", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("run", ForeignKey("runs.run"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("policy_version", BigInteger, nullable=True),
    Column("rehearsed_before", BigInteger, nullable=True),
    Column("rank", Integer, nullable=True),
    Column("payload", LargeBinary, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("run", ForeignKey("runs.run"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("next_step", BigInteger, nullable=False),
    Column("state", LargeBinary, nullable=False),
)

one_plan_a_step = Index(
    "one_plan_a_step",
    events.c.run,
    events.c.step,
    events.c.attempt,
    unique=True,
    sqlite_where=events.c.kind == "planned",
    postgresql_where=events.c.kind == "planned",
)


def open_database(url: str) -> Engine:
    """An engine on the ledger's database, its tables made if they are missing."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _durable_sqlite)
    metadata.create_all(engine)
    return engine


def _durable_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    """WAL lets readers go on while an event is written; FULL makes a commit survive a loss of power."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
