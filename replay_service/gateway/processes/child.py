"""A process of the service as its supervisor sees it, and what it is told when it starts.

Settings may hold secrets, so a process reads them from its standard input, the first line. The next line tells it to
stop as the service stops. When there is no next line, because the supervisor has closed its end or has ended, the
process finishes what it has begun at once, and ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import structlog
from pydantic import BaseModel, ConfigDict

from replay_service.gateway.metrics.process import FOLDER_VARIABLE
from replay_service.gateway.processes.link import Link
from replay_service.gateway.processes.owner_directory import OwnerPlace
from replay_service.gateway.processes.replica import reachable_host
from replay_service.settings import ServiceSettings

Kind = Literal["owner", "gateway"]

_MODULE: Final = "replay_service.gateway.processes.process"

IGNORED: Final = (signal.SIGTERM, signal.SIGINT)
"""Signals that a terminal or a service manager sends to all processes of a service. The supervisor alone heeds them: it
knows in which order processes must stop."""

_log = structlog.get_logger()


OWNER_SOCKET: Final = "owner.sock"


class Replica(BaseModel):
    """What a process must know of its replica of a cluster.

    Attributes:
        name: no other replica has it.
        owner_port: where its candidate for the ownership listens.
        address: where other replicas reach this candidate, host:port.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    owner_port: int
    address: str


class StartMessage(BaseModel):
    """The message to a process when it starts.

    Attributes:
        asks_for_tokens: whether callers need a token; decided once for the service, and not by each process.
        folder: of this service, which only its user can enter.
        replica: in a cluster.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    settings: ServiceSettings
    asks_for_tokens: bool
    folder: Path
    secret: str
    port: int
    replica: Replica | None = None

    @property
    def metrics_folder(self) -> Path:
        """Where the processes of the service leave their counts."""
        return self.folder / "metrics"

    @property
    def owner_socket(self) -> Path:
        """Where the owner listens outside a cluster."""
        return self.folder / OWNER_SOCKET

    @property
    def link(self) -> Link:
        return Link(self.secret)

    def own_place(self) -> OwnerPlace:
        """Where gateways reach the owner of this service or, in a cluster, the candidate of this replica."""
        if self.replica is None:
            return OwnerPlace.on_socket(self.owner_socket)
        return OwnerPlace.at(f"{reachable_host(self.settings.owner_host)}:{self.replica.owner_port}")


@dataclass(slots=True)
class Child:
    """A process of the service, and when it was started."""

    process: "subprocess.Popen[bytes]"
    started_at: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, message: StartMessage) -> "Child":
        # What is sent to all processes of a service must not end one that has not come so far as to ignore it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            # The kind is given only so that a list of processes shows it.
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, message.kind],
                stdin=subprocess.PIPE,
                env={**os.environ, FOLDER_VARIABLE: str(message.metrics_folder)},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        child = cls(process)
        child._say(message.model_dump_json().encode())
        return child

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def tell_to_stop(self) -> None:
        """Let it stop as the service does; returns at once."""
        self._say(b"stop")

    def tell_to_hurry(self) -> None:
        """Let it only finish what it has begun; returns at once."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _say(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended, or was told to hurry
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        """End it now, if it has not ended."""
        if not self.has_ended:
            _log.error("a process did not stop in time and is killed", pid=self.process.pid)
            self.process.kill()
            self.process.wait()
