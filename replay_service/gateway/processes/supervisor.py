"""Several gateways on one port: the process that starts them and the owner of the runs, and looks after them all.

The owner serves on a Unix socket in a folder that nobody else can enter. Gateways share a port by SO_REUSEPORT. What
all processes must hold to alike, such as whether callers need a token, is decided here, once.

In a cluster each host runs such a service, called a replica. One replica's owner has the lease of the cluster, and the
gateways of all replicas ask it over TCP. The others are candidates, which take the lease when it passes.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from replay_service.gateway.listening import AddressInUse, listener
from replay_service.gateway.metrics.process import forget_gauges
from replay_service.gateway.processes.child import Child, Kind, Replica, StartMessage
from replay_service.gateway.processes.replica import address_of, read_secret, replica_name
from replay_service.settings import ServiceSettings

_FOLDER_PREFIX: Final = "replay-service-"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_SETTLED_S: Final = 60.0
"""A folder that is younger may be one whose service has not locked it yet."""
_GRACE_S: Final = 5.0
"""Beyond the time to finish open requests, until a process that was told to stop is killed."""
_SHORT_LIFE_S: Final = 1.0
"""A gateway that ends sooner is started again only after as long."""

_NAMES: Final[dict[Kind, str]] = {"owner": "the candidate for the ownership of the runs", "gateway": "a gateway"}

_log = structlog.get_logger()


def supervise(settings: ServiceSettings) -> int:
    """Serve until SIGTERM or SIGINT, and give the exit code: 0, or 1 when the owner has ended by itself.

    In a cluster the owner's process is a candidate for the ownership, and is started again.

    Raises:
        AddressInUse: when a port is another program's.
        UnusableSecret: when the cluster's secret cannot be used.
    """
    given = settings.cluster_secret_file if settings.cluster else None
    secret = secrets.token_hex(32) if given is None else read_secret(given)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(reserved_port(settings.host, settings.port))
        replica = None
        if settings.cluster:
            owner_port = stack.enter_context(reserved_port(settings.owner_host, settings.owner_port))
            replica = Replica(name=replica_name(), owner_port=owner_port, address=address_of(settings, owner_port))
        message = StartMessage(
            kind="owner",
            settings=settings,
            asks_for_tokens=settings.asks_for_tokens,
            folder=stack.enter_context(_private_folder()),
            secret=secret,
            port=port,
            replica=replica,
        )
        message.metrics_folder.mkdir()
        told, wake = socket.socketpair()
        with told, wake, _signals_to(wake):
            return _Supervisor(message, told).run()


@dataclass(slots=True)
class _Supervisor:
    """The processes of one service: its owner, or in a cluster its candidate for the ownership, and the gateways."""

    message: StartMessage
    told: socket.socket
    owner: Child = field(init=False)
    gateways: list[Child] = field(init=False)

    def run(self) -> int:
        """Start all at once: until the owner serves, gateways tell callers to come again."""
        settings = self.message.settings
        self.owner = self._start("owner")
        self.gateways = [self._start("gateway") for _ in range(settings.gateways)]
        said = {"host": settings.host, "port": self.message.port, "gateways": settings.gateways}
        if self.message.replica is not None:
            said["owner_address"] = self.message.replica.address
        _log.info("starting", **said)
        try:
            is_orphaned = self._look_after()
        finally:
            self._stop_all()
        if is_orphaned:
            exit_code = self.owner.process.returncode
            _log.error("the process that owns the runs has ended, and the service with it", exit_code=exit_code)
        return int(is_orphaned)

    @property
    def _is_in_cluster(self) -> bool:
        return self.message.replica is not None

    def _start(self, kind: Kind) -> Child:
        return Child.start(self.message.model_copy(update={"kind": kind}))

    def _start_again(self, ended: Child, kind: Kind) -> Child:
        _log.error(f"{_NAMES[kind]} has ended and is started again", exit_code=ended.process.returncode)
        forget_gauges(ended.process.pid, self.message.metrics_folder)
        time.sleep(max(0.0, ended.started_at + _SHORT_LIFE_S - time.monotonic()))
        return self._start(kind)

    def _look_after(self) -> bool:
        """Start processes again until somebody says to stop (False), or the owner ends outside a cluster (True)."""
        while True:
            if self.owner.has_ended:
                if not self._is_in_cluster:
                    return True
                self.owner = self._start_again(self.owner, "owner")
            for index, each in enumerate(self.gateways):
                if each.has_ended:
                    self.gateways[index] = self._start_again(each, "gateway")
            if self._is_told_to_stop():
                return False

    def _is_told_to_stop(self) -> bool:
        """Wait for a signal; whether it was one to stop, and not of a child that has ended."""
        signals = self.told.recv(256)
        return any(each in signals for each in (signal.SIGTERM, signal.SIGINT))

    def _stop_all(self) -> None:
        """Stop the gateways first, since they ask the owner; those that are told together finish together.

        In a cluster they ask the owner of another replica from now on.
        """
        if self._is_in_cluster:
            self.owner.tell_to_stop()
        self._stop(self.gateways)
        if self._is_in_cluster:
            self.owner.tell_to_hurry()
        self._stop([self.owner])

    def _stop(self, children: Sequence[Child]) -> None:
        """Tell processes to stop, at once when somebody says so a second time; kill those that do not."""
        for each in children:
            each.tell_to_stop()
        settings = self.message.settings
        ends_at = time.monotonic() + settings.shutdown_delay_s + settings.drain_timeout_s + _GRACE_S
        while not all(each.has_ended for each in children) and time.monotonic() < ends_at:
            self.told.settimeout(max(0.01, ends_at - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                if self._is_told_to_stop():
                    for each in children:
                        each.tell_to_hurry()
        for each in children:
            each.kill()


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A new folder that only this user can enter; those that killed services have left are removed.

    Whoever uses a folder holds a lock on it, which the system lets go however a process ends.
    """
    for each in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - each.stat().st_mtime > _SETTLED_S:
                with _locked(each):
                    shutil.rmtree(each)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError when another process holds the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def reserved_port(host: str, port: int) -> Iterator[int]:
    """Keep a port for the gateways, any free one for 0, so that no other program takes it while one of them restarts.

    Raises:
        AddressInUse: when it cannot be had.
    """
    try:
        with listener(host, port, is_shared=False) as alone:
            found: int = alone.getsockname()[1]
        held = listener(host, found)
    except OSError as error:
        raise AddressInUse.of(host, port, error) from error
    with held:
        yield found


@contextlib.contextmanager
def _signals_to(wake: socket.socket) -> Iterator[None]:
    """Write the number of each signal to a socket, so that one can wait for them."""
    wake.setblocking(False)
    before = {each: signal.signal(each, lambda *_: None) for each in _SIGNALS}
    signal.set_wakeup_fd(wake.fileno())
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for each, handler in before.items():
            signal.signal(each, handler)
