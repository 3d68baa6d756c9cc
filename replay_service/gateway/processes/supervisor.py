"""Several gateways on one port: the process that starts them and the owner of the runs, and looks after them all.

The owner serves on a Unix socket in a folder that nobody else can enter. Gateways share a port by SO_REUSEPORT. Each
process has its settings, which may hold secrets, from its standard input, and ends when that is closed: so none is left
when this process is killed.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from replay_service.errors import ReplayError
from replay_service.settings import ServiceSettings

OWNER_SOCKET: Final = "owner.sock"
_MODULE: Final = "replay_service.gateway.processes.process"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_GRACE_S: Final = 5.0
"""Beyond the time to finish open requests, until a process that was told to stop is killed."""
_SHORT_LIFE_S: Final = 1.0
"""A gateway that ends sooner is started again only after as long."""

_log = structlog.get_logger()


class AddressInUse(ReplayError):
    slug, title = "address-in-use", "The port cannot be listened on"


@dataclass(slots=True)
class Child:
    """A process of the service, and when it was started."""

    process: "subprocess.Popen[bytes]"
    started_at: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, settings: ServiceSettings, *arguments: str | int | Path) -> "Child":
        command = [sys.executable, "-m", _MODULE, *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(settings.model_dump_json().encode() + b"\n")
        process.stdin.flush()  # left open: its end tells the process that this one is gone
        return cls(process)

    def stop(self, within_s: float) -> None:
        """Let it finish what it has begun."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            _log.error("a process did not stop in time and is killed", pid=self.process.pid)
            self.process.kill()
            self.process.wait()


def supervise(settings: ServiceSettings) -> int:
    """Serve until SIGTERM or SIGINT, and give the exit code: 0, or 1 when the owner has ended by itself.

    Raises:
        AddressInUse: when the port is another program's.
    """
    with reserved_port(settings.host, settings.port) as port, tempfile.TemporaryDirectory(prefix="replay-") as folder:
        told, wake = socket.socketpair()
        with told, wake, _signals_to(wake):
            return _Supervisor(settings, port, Path(folder) / OWNER_SOCKET, told).run()


@dataclass(slots=True)
class _Supervisor:
    settings: ServiceSettings
    port: int
    owner_socket: Path
    told: socket.socket

    def run(self) -> int:
        """Start all at once: until the owner serves, gateways tell callers to come again."""
        owner = Child.start(self.settings, "owner", self.owner_socket)
        gateways = [self._gateway() for _ in range(self.settings.gateways)]
        _log.info("starting", host=self.settings.host, port=self.port, gateways=len(gateways))
        try:
            is_orphaned = self._look_after(owner, gateways)
        finally:
            self._stop_all([*gateways, owner])
        if is_orphaned:
            exit_code = owner.process.returncode
            _log.error("the process that owns the runs has ended, and the service with it", exit_code=exit_code)
        return int(is_orphaned)

    def _gateway(self) -> Child:
        return Child.start(self.settings, "gateway", self.owner_socket, self.port)

    def _look_after(self, owner: Child, gateways: list[Child]) -> bool:
        """Start gateways again until somebody says to stop (False), or the owner ends (True)."""
        while owner.process.poll() is None:
            for index, each in enumerate(gateways):
                if each.process.poll() is not None:
                    _log.error("a gateway has ended and is started again", exit_code=each.process.returncode)
                    time.sleep(max(0.0, each.started_at + _SHORT_LIFE_S - time.monotonic()))
                    gateways[index] = self._gateway()
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
        within_s = self.settings.drain_timeout_s + _GRACE_S
        for each in gateways:
            if each.process.poll() is None:
                each.process.terminate()
        for each in (*gateways, owner):
            each.stop(within_s)


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
        raise AddressInUse(f"{host}:{port} cannot be listened on: {error.strerror or error}") from error
    with held:
        yield found


def listener(host: str, port: int, is_shared: bool = True) -> socket.socket:
    """A socket that is bound to an address but does not listen yet; with `is_shared`, others may be bound to it too."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


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
