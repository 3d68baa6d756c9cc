"""The supervisor of the service on one node: a Ray actor that starts `serve` again whenever it ends."""

import hashlib
import importlib.metadata
import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from replay_service.settings import ServiceSettings, load_settings

_SHORTEST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 30.0
"""Between the end of a process and the next one; the wait doubles while processes end early."""
_SETTLED_S: Final = 60.0
"""A process that lives longer has not ended early."""
_GRACE_S: Final = 10.0
"""Beyond the time to finish open requests, until a process that was told to stop is killed."""
_LINES_TOLD: Final = 3
"""Of the log of a process that has ended."""
_READY_WITHIN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """What runs on every node: `serve` with these options, which name a configuration file by its path there.

    Attributes:
        config: the configuration file; None where there is none.
        flags: settings by name, as options give them.
    """

    config: str | None
    flags: dict[str, str | int | bool]

    def options(self) -> list[str]:
        """The command line after `serve`."""
        words = [] if self.config is None else ["--config", self.config]
        for name, value in self.flags.items():
            option = f"--{name.replace('_', '-')}"
            words += [option if value else f"--no-{option[2:]}"] if isinstance(value, bool) else [option, str(value)]
        return words

    def settings(self) -> ServiceSettings:
        """As they are on this node, with its environment."""
        return load_settings(None if self.config is None else Path(self.config), **self.flags)

    def fingerprint(self) -> str:
        """Equal while options, configuration file and installed version are the same on this node."""
        content = "" if self.config is None else Path(self.config).read_text()
        said = json.dumps([self.config, sorted(self.flags.items()), content, installed_version()])
        return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What runs on a node.

    Attributes:
        node: its host name and address.
        version: of replay-service there.
        pid: of the process that serves; None while there is none.
        is_ready: whether its /readyz answers.
        problem: why it is not ready; empty when it is.
        fingerprint: of the command that runs.
    """

    node: str
    version: str
    pid: int | None
    is_ready: bool
    problem: str
    fingerprint: str


def installed_version() -> str:
    """As it is on the disk now, which may be newer than what this process has loaded."""
    return importlib.metadata.version("replay-service")


class Supervisor:
    """Runs the service on this node.

    Its constructor starts the process, so that Ray, which constructs an actor again when its process was lost, starts
    the service again.

    Args:
        command: what to run.
        node: how to name the node.
        program: what runs it; other programs are for tests.
    """

    def __init__(
        self,
        command: ServeCommand,
        node: str,
        program: Sequence[str] = (sys.executable, "-m", "replay_service.ray_service.process", "serve"),
    ) -> None:
        self._command = command
        self._node = node
        self._program = program
        self._settings = command.settings()
        self._fingerprint = command.fingerprint()
        self._version = installed_version()
        self._lines: deque[str] = deque(maxlen=_LINES_TOLD)
        self._said = ["the process starts"]
        self._stopping = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._watcher = threading.Thread(target=self._keep_running, daemon=True)
        self._watcher.start()

    def status(self) -> NodeStatus:
        process = self._process
        is_running = process is not None and process.poll() is None
        problem = self._not_ready() if is_running else ""
        if problem or not is_running:
            problem = "; ".join(filter(None, (problem, self._last_words())))
        return NodeStatus(
            node=self._node,
            version=self._version,
            pid=process.pid if process is not None and is_running else None,
            is_ready=is_running and not problem,
            problem=problem,
            fingerprint=self._fingerprint,
        )

    def is_same(self, command: ServeCommand) -> bool:
        """Whether the command, as this node would run it now, is the one that runs."""
        return command.fingerprint() == self._fingerprint

    def stop(self) -> None:
        """End the service; open requests are finished first. It is not started again."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(self._settings.shutdown_delay_s + self._settings.drain_timeout_s + _GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._watcher.join()

    def _keep_running(self) -> None:
        wait_s = _SHORTEST_WAIT_S
        while not self._stopping.is_set():
            began = time.monotonic()
            process = self._start()
            if process is None:
                return
            with process:
                self._forward(process)
                exit_code = process.wait()
            self._said = [*self._lines, f"the process has ended with exit code {exit_code}"]
            self._lines.clear()
            wait_s = _SHORTEST_WAIT_S if time.monotonic() - began > _SETTLED_S else min(2 * wait_s, _LONGEST_WAIT_S)
            self._stopping.wait(wait_s)

    def _start(self) -> "subprocess.Popen[str] | None":
        with self._lock:
            if self._stopping.is_set():
                return None
            # The pipe to its standard input closes with this process, however that ends.
            self._process = subprocess.Popen(
                [*self._program, *self._command.options()],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            return self._process

    def _forward(self, process: "subprocess.Popen[str]") -> None:
        """Hand the log of the service on to Ray's log of this actor, and keep its last lines."""
        assert process.stderr is not None
        for line in process.stderr:
            self._lines.append(line.rstrip())
            sys.stderr.write(line)
            sys.stderr.flush()

    def _not_ready(self) -> str:
        """Why /readyz does not answer with 200; empty if it does."""
        scheme = "http" if self._settings.tls_key is None else "https"
        host = "127.0.0.1" if self._settings.host in ("0.0.0.0", "::", "localhost") else self._settings.host
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._settings.port}/readyz"
        context = ssl._create_unverified_context()  # it asks itself, so whose certificate it has does not matter
        try:
            urllib.request.urlopen(url, timeout=_READY_WITHIN_S, context=context).close()
        except urllib.error.HTTPError as error:
            return _detail(error.read())
        except (OSError, TimeoutError) as error:
            return f"{url} does not answer: {getattr(error, 'reason', error)}"
        return ""

    def _last_words(self) -> str:
        """What the process before this one has said last."""
        return " | ".join(self._said)


def _detail(body: bytes) -> str:
    """The detail of a problem document, or the beginning of what is none."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")
