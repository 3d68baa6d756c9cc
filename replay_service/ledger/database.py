"""The ledger's database: SQLite on one machine, PostgreSQL for many; opened, made durable, and brought up to date."""

import math
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import stamina
import structlog
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, Insert, Select, Update, create_engine, event, func, make_url, select
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from replay_service.errors import ReplayError

MOST_APART_S: Final = 60.0
"""Clocks of hosts that follow a time server are apart by much less."""

_log = structlog.get_logger()


class UnusableDatabase(ReplayError):
    slug, title, status = "unusable-database", "The database cannot be used", 503


Durability = Literal["full", "relaxed"]
"""`full`: what was answered survives a loss of power. `relaxed`: it survives the death of the process."""

_MIGRATION_LOCK = 7310254
_BUSY_S = 10
"""How long to wait for another process that writes an SQLite file."""
_SQLITE = {"full": "FULL", "relaxed": "NORMAL"}
_POSTGRESQL = {"full": "on", "relaxed": "off"}

DEFAULT_TIMEOUT_S = 20.0
_CONNECT_S = 5
_TRY_EVERY_S = 2.0
_SILENT_S = 15
"""After how long a peer that no longer answers at all is given up, by either side."""


def open_database(url: str, durability: Durability = "full", timeout_s: float = DEFAULT_TIMEOUT_S) -> Engine:
    """An engine on the ledger's database, its tables made or migrated to this release's schema.

    Args:
        timeout_s: as for `engine_of`.
    """
    engine = engine_of(url, durability, timeout_s)
    try:
        with engine.connect() as connection:
            migrate(connection)
    except BaseException:
        engine.dispose()
        raise
    return engine


def prepare_database(url: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Wait until the ledger's database can be used, and bring its schema up to date.

    Args:
        timeout_s: how long a PostgreSQL server may take to come up; and as for `engine_of`.

    Raises:
        UnusableDatabase: says why it cannot be used.
    """
    ends_at = time.monotonic() + (0.0 if make_url(url).get_backend_name() == "sqlite" else timeout_s)
    while True:
        try:
            open_database(url, timeout_s=timeout_s).dispose()
            return
        except (SQLAlchemyError, CommandError) as error:
            if not isinstance(error, OperationalError) or time.monotonic() >= ends_at:
                raise UnusableDatabase(_reason(error)) from error
            _log.warning("waiting for the database", problem=_reason(error))
        time.sleep(_TRY_EVERY_S)


def check_clock(url: str, timeout_s: float = DEFAULT_TIMEOUT_S, clock: Callable[[], float] = time.time) -> None:
    """Compare the clock of this host with that of a PostgreSQL server. Owners on several hosts write times of events.

    Args:
        clock: tells seconds since 1970.

    Raises:
        UnusableDatabase: when they are more than MOST_APART_S apart.
    """
    engine = engine_of(url, timeout_s=timeout_s)
    try:
        with engine.connect() as connection:
            before = clock()
            theirs = float(connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())
            ahead_s = (before + clock()) / 2 - theirs
    except SQLAlchemyError as error:
        raise UnusableDatabase(_reason(error)) from error
    finally:
        engine.dispose()
    if abs(ahead_s) > MOST_APART_S:
        raise UnusableDatabase(
            f"the clock of this host is {abs(ahead_s):,.0f} s {'ahead of' if ahead_s > 0 else 'behind'} that of the "
            "database, so times of events would be wrong; let the hosts of all replicas and of the database follow one "
            "time server (NTP)"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, CommandError):
        return (
            "the database was used by a newer release of the service, whose schema this one does not know; upgrade all "
            f"services on it to that release ({error})"
        )
    first_line = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    return f"{first_line}; see the setting database_url"


def engine_of(url: str, durability: Durability = "full", timeout_s: float = DEFAULT_TIMEOUT_S) -> Engine:
    """An engine on the ledger's database, which is left as it is.

    Args:
        timeout_s: how long PostgreSQL may take for a statement, for a lock, and for an answer. A session that is idle
            in a transaction for as long is ended by the server, so that a host that is lost holds no lock.
    """
    if make_url(url).get_backend_name() == "sqlite":
        engine = create_engine(url, hide_parameters=True)
        event.listen(engine, "connect", _configure_sqlite(durability))
        _write_ahead(engine)
    else:
        engine = create_engine(url, hide_parameters=True, pool_timeout=timeout_s)
        event.listen(engine, "do_connect", _connect_bounded(timeout_s))
        event.listen(engine, "connect", _configure_postgresql(durability, timeout_s))
    return engine


def migrate(connection: Connection) -> None:
    """Bring the schema up to date; of two processes that start at once, one waits for the other."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        # A migration takes as long as it takes, and so does the wait for it.
        for limit in ("statement_timeout", "lock_timeout"):
            connection.exec_driver_sql(f"SET LOCAL {limit} = 0")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.commit()


def _is_busy(error: Exception) -> bool:
    return isinstance(error, OperationalError) and getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY


@stamina.retry(on=_is_busy, attempts=None, timeout=_BUSY_S, wait_initial=0.01, wait_max=0.5, wait_jitter=0.05)
def _write_ahead(engine: Engine) -> None:
    """Let readers go on while an event is written; the file remembers it.

    Of processes that open a new file at once, SQLite tells all but one that it is locked, without the wait that it
    grants to everything else.
    """
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")


OnConnect = Callable[[DBAPIConnection, ConnectionPoolEntry], None]


def _configure_sqlite(durability: Durability) -> OnConnect:
    settings = (f"busy_timeout={_BUSY_S * 1000}", f"synchronous={_SQLITE[durability]}", "foreign_keys=ON")
    return _on_connect([f"PRAGMA {each}" for each in settings])


def _configure_postgresql(durability: Durability, timeout_s: float) -> OnConnect:
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    silence = {"tcp_keepalives_idle": 5, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 2}
    settings = {"synchronous_commit": _POSTGRESQL[durability], "tcp_user_timeout": f"'{_SILENT_S}s'", **silence}
    settings |= dict.fromkeys(limits, f"{timeout_s * 1000:.0f}")
    return _on_connect([f"SET {name} = {value}" for name, value in settings.items()])


def _connect_bounded(timeout_s: float) -> Callable[..., Any]:
    """Connects to PostgreSQL so that neither a silent host nor a silent server keeps anybody waiting for ever."""
    import psycopg

    class BoundedConnection(psycopg.Connection[Any]):
        """A connection that is given up when the server does not answer in time, even if its host is well."""

        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            ends_at = time.monotonic() + timeout_s
            try:
                return super().wait(gen, interval, timeout_s if timeout is None else timeout)
            except psycopg.OperationalError:
                if time.monotonic() >= ends_at:
                    self.close()
                raise

    connect_s = min(_CONNECT_S, math.ceil(timeout_s))
    silence = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2}

    def connect(_dialect: Any, _entry: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        limits = {
            "connect_timeout": connect_s,
            "tcp_user_timeout": _SILENT_S * 1000,
            **silence,
        }
        return BoundedConnection.connect(*arguments, **limits | options)

    return connect


def _on_connect(statements: list[str]) -> OnConnect:
    def configure(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        cursor.close()
        connection.commit()

    return configure


Row = Mapping[str, object]


class DirectStatement:
    """A statement that is compiled once and goes to the driver as it is, with values that need no conversion.

    Executing it costs a fifth of what SQLAlchemy's own way costs, which counts where every report passes.
    """

    def __init__(self, statement: Insert | Update | Select[Any], engine: Engine) -> None:
        compiled = statement.compile(dialect=engine.dialect)
        self._text = str(compiled)
        self._order = getattr(compiled, "positiontup", None)

    def execute(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Execute it for every row; returns how many rows of the table it touched."""
        if not rows:
            return 0
        values = [self._values(row) for row in rows]
        cursor = connection.connection.cursor()
        try:
            if len(values) > 1:
                cursor.executemany(self._text, values)
            else:
                cursor.execute(self._text, values[0])
            return cursor.rowcount
        finally:
            cursor.close()

    def scalar(self, connection: Connection, row: Row) -> Any:
        """The first column of the first row that a query finds, or None."""
        return connection.exec_driver_sql(self._text, self._values(row)).scalar()

    def driver_scalar(self, cursor: DBAPICursor, row: Row) -> Any:
        """As `scalar`, with a cursor of the driver."""
        cursor.execute(self._text, self._values(row))
        found = cursor.fetchall()  # all of it: a query that is not through holds on to the past
        return found[0][0] if found else None

    def _values(self, row: Row) -> Any:
        return row if self._order is None else tuple(map(row.__getitem__, self._order))


class QuickLook:
    """A query for one value on a connection that it keeps, one at a time and each a transaction of its own.

    Taking a connection out of the pool and giving it back costs ten times what such a query costs, which counts where
    every answer passes.
    """

    def __init__(self, statement: Select[Any], engine: Engine) -> None:
        self._statement = DirectStatement(statement, engine)
        self._engine = engine
        self._errors = engine.dialect.loaded_dbapi.Error
        self._lock = threading.Lock()
        self._connection: Any = None

    def scalar(self, row: Row) -> Any:
        """The first column of the first row that the query finds, or None.

        Raises:
            SQLAlchemyError: when the database does not answer, on a fresh connection neither.
        """
        with self._lock:
            try:
                return self._statement.driver_scalar(self._cursor(), row)
            except self._errors:
                self._drop()
        with self._engine.connect() as connection:
            return self._statement.scalar(connection, row)

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _cursor(self) -> Any:
        if self._connection is None:
            pooled = self._engine.raw_connection()
            self._connection = pooled.driver_connection
            pooled.detach()
            if self._engine.dialect.name != "sqlite":  # which begins no transaction for a query
                self._connection.autocommit = True
        return self._connection.cursor()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(self._errors):
                connection.close()
