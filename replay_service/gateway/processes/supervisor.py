"""Several gateways on one port: the process that starts them and the owner of the runs, and looks after them all.

The owner serves on a Unix socket in a folder that nobody else can enter. Gateways share a port by SO_REUSEPORT. What
all processes must hold to alike, such as whether callers need a token, is decided here, once.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from replay_service.gateway.listening import AddressInUse, listener
from replay_service.gateway.metrics.process import forget_gauges
from replay_service.gateway.processes.child import Child, Kind, StartMessage
from replay_service.settings import ServiceSettings

OWNER_SOCKET: Final = "owner.sock"
_FOLDER_PREFIX: Final = "replay-service-"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_SETTLED_S: Final = 60.0
"""A folder that is younger may be one whose service has not locked it yet."""
_GRACE_S: Final = 5.0
"""Beyond the time to finish open requests, until a process that was told to stop is killed."""
_SHORT_LIFE_S: Final = 1.0
"""A gateway that ends sooner is started again only after as long."""

_log = structlog.get_logger()


def supervise(settings: ServiceSettings) -> int:
    """Serve until SIGTERM or SIGINT, and give the exit code: 0, or 1 when the owner has ended by itself.

    Raises:
        AddressInUse: when the port is another program's.
    """
    with reserved_port(settings.host, settings.port) as port, _folder_of_sockets() as folder:
        told, wake = socket.socketpair()
        with told, wake, _signals_to(wake):
            message = StartMessage(
                kind="owner",
                settings=settings,
                asks_for_tokens=settings.asks_for_tokens,
                owner_socket=folder / OWNER_SOCKET,
                secret=secrets.token_hex(32),
                port=port,
            )
            message.metrics_folder.mkdir()
            return _Supervisor(message, told).run()


@dataclass(slots=True)
class _Supervisor:
    message: StartMessage
    told: socket.socket

    def run(self) -> int:
        """Start all at once: until the owner serves, gateways tell callers to come again."""
        settings = self.message.settings
        owner = self._start("owner")
        gateways = [self._start("gateway") for _ in range(settings.gateways)]
        _log.info("starting", host=settings.host, port=self.message.port, gateways=len(gateways))
        try:
            is_orphaned = self._look_after(owner, gateways)
        finally:
            self._stop_all([*gateways, owner])
        if is_orphaned:
            exit_code = owner.process.returncode
            _log.error("the process that owns the runs has ended, and the service with it", exit_code=exit_code)
        return int(is_orphaned)

    def _start(self, kind: Kind) -> Child:
        return Child.start(self.message.model_copy(update={"kind": kind}))

    def _look_after(self, owner: Child, gateways: list[Child]) -> bool:
        """Start gateways again until somebody says to stop (False), or the owner ends (True)."""
        while not owner.has_ended:
            for index, each in enumerate(gateways):
                if each.has_ended:
                    _log.error("a gateway has ended and is started again", exit_code=each.process.returncode)
                    forget_gauges(each.process.pid, self.message.metrics_folder)
                    time.sleep(max(0.0, each.started_at + _SHORT_LIFE_S - time.monotonic()))
                    gateways[index] = self._start("gateway")
            if self._is_told_to_stop():
                return False
        return True

    def _is_told_to_stop(self) -> bool:
        """Wait for a signal; whether it was one to stop, and not of a child that has ended."""
        signals = self.told.recv(256)
        return any(each in signals for each in (signal.SIGTERM, signal.SIGINT))

    def _stop_all(self, children: Sequence[Child]) -> None:
        """Gateways first, since they ask the owner; those that are told together finish together."""
        *gateways, owner = children
        for each in (gateways, [owner]):
            self._stop(each)

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
def _folder_of_sockets() -> Iterator[Path]:
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
