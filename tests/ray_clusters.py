"""A Ray cluster of several nodes on this machine, each of `ray start`, and commands that join it.

A node may have folders of its own in place of some that the others share: it runs in a mount namespace, which needs
root and `unshare`.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import free_port

_RAY = shutil.which("ray", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "ray"

_PATIENT = {"RAY_raylet_start_wait_time_s": "240"}
"""How long a node takes on a busy machine is no property of the code."""


def can_hide_folders() -> bool:
    """Whether a node can be given folders of its own."""
    return os.geteuid() == 0 and shutil.which("unshare") is not None


@dataclass
class RayCluster:
    """Nodes of one CPU or more.

    Attributes:
        folder: of Ray's files; its path must be short.
        port: of the head.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of a command on this machine, which is a node of the cluster; RAY_ADDRESS is not in it."""
        usual = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        usual["PATH"] = f"{Path(sys.executable).parent}:{usual['PATH']}"
        return usual | {
            "RAY_TMPDIR": str(self.folder),
            "HOME": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            **_PATIENT,
        }

    def start_head(self, num_cpus: int, **variables: str) -> None:
        client_port = free_port()
        ports = [f"--port={self.port}", f"--ray-client-server-port={client_port}"]
        self._start(["--head", *ports, "--include-dashboard=false"], num_cpus, (), variables)

    def add_node(self, num_cpus: int, hidden: Sequence[Path] = (), **variables: str) -> None:
        """Add a node that has empty folders of its own in place of `hidden`, and variables in its environment."""
        self._start([f"--address={self.address}"], num_cpus, hidden, variables)

    def run(self, code: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python on a node of the cluster."""
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment | variables, capture_output=True, text=True, check=False, timeout=600
        )

    def command(self, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `replay-service` on a node of the cluster."""
        code = "import sys; sys.argv[0] = 'replay-service'; from replay_service.cli import main; main()"
        return self.run(code, *words, **variables)

    def _start(self, options: Sequence[str], num_cpus: int, hidden: Sequence[Path], variables: dict[str, str]) -> None:
        command = [
            _RAY, "start", *options, "--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}", "--block",
            "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        if hidden:
            mounts = " && ".join(f"mount -t tmpfs none '{each}'" for each in hidden)
            command = ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]
        log = (self.folder / f"node-{len(self.nodes)}.log").open("wb")
        with log:
            node = subprocess.Popen(
                command, env=self.environment | variables, stdout=log, stderr=log, start_new_session=True
            )
        self.nodes.append(node)
        self._wait_for("Ray runtime started", self.folder / f"node-{len(self.nodes) - 1}.log")

    def _wait_for(self, text: str, log: Path) -> None:
        for _ in range(2400):
            if text in log.read_text():
                return
            if self.nodes[-1].poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"the node did not start: {log.read_text()[-2000:]}")

    def stop(self) -> None:
        for each in reversed(self.nodes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
            each.wait()


@contextlib.contextmanager
def ray_cluster(folder: Path) -> Iterator[RayCluster]:
    """A cluster without nodes; those that are added end with the block."""
    cluster = RayCluster(folder)
    try:
        yield cluster
    finally:
        cluster.stop()
