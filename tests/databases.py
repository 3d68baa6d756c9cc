"""A PostgreSQL server of the tests' own: made in a folder, on loopback, gone afterwards."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from tests.support import free_port

SUPERUSER: Final = "postgres"
"""The database's superuser, and the account that the server runs as when the tests run as root."""

_INSTALLED: Final = Path("/usr/lib/postgresql")


def find_postgresql() -> Path | None:
    """The folder that holds `initdb` and `postgres`, of the newest version installed; None when there is none."""
    on_path = [Path(each) for each in os.environ.get("PATH", "").split(os.pathsep) if each]
    installed = sorted(_INSTALLED.glob("*/bin"), key=_version, reverse=True)
    return next((each for each in [*on_path, *installed] if _is_complete(each)), None)


def _version(bin_folder: Path) -> float:
    try:
        return float(bin_folder.parent.name)
    except ValueError:
        return 0.0


def _is_complete(folder: Path) -> bool:
    return all(shutil.which(program, path=str(folder)) for program in ("initdb", "postgres"))


@dataclass(slots=True)
class PostgresqlServer:
    """A server of the cluster in `folder`, as often as it is started."""

    folder: Path
    programs: Path
    port: int = field(default_factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """A URL template with the field `{database}`."""
        return f"postgresql+psycopg://{SUPERUSER}@127.0.0.1:{self.port}/{{database}}"

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._process = _server(self.programs, self.folder, self.port, log.fileno())
        _await_ready(self.url.format(database="postgres"), self._process, self.folder)

    def stop(self) -> None:
        """A fast shutdown: sessions are ended, nothing is waited for."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=60)

    def kill(self) -> None:
        """End the server and all its processes at once, as a loss of the machine would but for its disk."""
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        parent.suspend()  # it starts no further process while those that there are get listed
        processes = [parent, *parent.children(recursive=True)]
        for each in processes:
            each.kill()
        self._process.wait(timeout=60)
        psutil.wait_procs(processes, timeout=60)


@contextmanager
def postgresql_server(folder: Path) -> Iterator[PostgresqlServer]:
    """A running server whose cluster is in `folder`, an empty one.

    PostgreSQL refuses to run as root, so root runs it as `postgres`; that account must be able to reach the folder,
    which pytest's temporary folders do not let it.
    """
    programs = find_postgresql()
    assert programs is not None, "PostgreSQL is not installed"
    _hand_over(folder)
    _init_cluster(programs, folder)
    server = PostgresqlServer(folder, programs)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def make_cluster(folder: Path, trusted_network: str) -> Path:
    """The files of a new server in `folder`, an empty one, that lets in everybody from a network."""
    programs = find_postgresql()
    assert programs is not None, "PostgreSQL is not installed"
    _hand_over(folder)
    _init_cluster(programs, folder)
    with (folder / "data" / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {trusted_network} trust\n")
    return folder / "data"


@contextmanager
def fresh_database(template: str, name: str) -> Iterator[str]:
    """The URL of a new, empty database on a server; it is dropped afterwards, whoever still uses it."""
    maintenance = template.format(database="postgres")
    _execute(maintenance, f'CREATE DATABASE "{name}"')
    try:
        yield template.format(database=name)
    finally:
        _execute(maintenance, f'DROP DATABASE "{name}" WITH (FORCE)')


def _execute(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(statement))
    finally:
        engine.dispose()


def _account() -> str | None:
    """Whom to run the server as: nobody else, unless this is root."""
    return SUPERUSER if os.geteuid() == 0 else None


def _hand_over(folder: Path) -> None:
    account = _account()
    if account is not None:
        os.chown(folder, pwd.getpwnam(account).pw_uid, pwd.getpwnam(account).pw_gid)


def _init_cluster(programs: Path, folder: Path) -> None:
    account = _account()
    command = [programs / "initdb", "--pgdata", folder / "data", "--username", SUPERUSER, "--auth", "trust"]
    options = ["--encoding", "UTF8", "--no-locale", "--no-sync"]
    done = subprocess.run(
        [*command, *options],
        cwd=folder,
        user=account,
        group=account,
        extra_groups=None if account is None else [],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"initdb failed: {done.stderr}"


def _server(programs: Path, folder: Path, port: int, log: int) -> "subprocess.Popen[bytes]":
    account = _account()
    settings = ["listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=", "max_connections=50"]
    return subprocess.Popen(
        [programs / "postgres", "-D", folder / "data", *(part for each in settings for part in ("-c", each))],
        cwd=folder,
        user=account,
        group=account,
        extra_groups=None if account is None else [],
        stdout=log,
        stderr=log,
    )


def _await_ready(url: str, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, f"PostgreSQL stopped: {(folder / 'server.log').read_text()}"
        try:
            return _execute(url, "SELECT 1")
        except OperationalError:
            time.sleep(0.1)
    raise AssertionError("PostgreSQL did not become ready")
