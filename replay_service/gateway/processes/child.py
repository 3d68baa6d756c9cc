"""A process of the service as its supervisor sees it, and what it is told when it starts.

Settings may hold secrets, so a process reads them from its standard input. That stays open for as long as the process
is to serve: when it is closed, by the supervisor or by its end, the process finishes what it has begun and ends.
"""

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import structlog
from pydantic import BaseModel, ConfigDict

from replay_service.gateway.processes.link import Link
from replay_service.settings import ServiceSettings

Kind = Literal["owner", "gateway"]

_MODULE: Final = "replay_service.gateway.processes.process"

_log = structlog.get_logger()


class StartMessage(BaseModel):
    """What a process is told when it starts.

    Attributes:
        asks_for_tokens: whether callers need a token; decided once for the service, and not by each process.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    settings: ServiceSettings
    asks_for_tokens: bool
    owner_socket: Path
    secret: str
    port: int

    @property
    def link(self) -> Link:
        return Link(self.owner_socket, self.secret)


@dataclass(slots=True)
class Child:
    """A process of the service, and when it was started."""

    process: "subprocess.Popen[bytes]"
    started_at: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, message: StartMessage) -> "Child":
        # The kind is given only so that a list of processes shows it.
        process = subprocess.Popen([sys.executable, "-m", _MODULE, message.kind], stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(message.model_dump_json().encode() + b"\n")
        process.stdin.flush()
        return cls(process)

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def tell_to_stop(self) -> None:
        """Let it finish what it has begun; returns at once."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def await_end(self, within_s: float) -> None:
        """Kill it if it does not end in time."""
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            _log.error("a process did not stop in time and is killed", pid=self.process.pid)
            self.process.kill()
            self.process.wait()
