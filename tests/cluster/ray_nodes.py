"""A job of Ray Train on two hosts, through a lost node and a lost owner of the runs.

    python -m tests.cluster.ray_nodes [--lease-s 15] [--folder FOLDER]

The hosts are those of `tests.cluster.cluster`. On those of the trainers run a Ray head and a Ray node, with room for
one rank each; each has a folder of its own for Ray. The command prints how long the job stood still for each fault.
The plans, the losses and the ratio must be those of the same job without faults.
"""

import argparse
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from replay_trainer.job.metrics import MetricsFile
from tests.cluster.cluster import PATIENCE_S, TRAINERS, Cluster, await_true, running_cluster
from tests.cluster.hosts import Host
from tests.support import make_tiny_model
from tests.trainer.worlds import SEQ_LEN, corpus_for, write_text

_PORT: Final = 6379
_NUM_STEPS: Final = 150
_WINDOW_STEPS: Final = 3
_MOST_STEPS_AHEAD: Final = 2 * _WINDOW_STEPS
"""A job has the window that it trains on, and the next one."""
_CORPUS: Final = "language"
_RAY: Final = Path(sys.executable).parent / "ray"
_TRAIN: Final = "import sys; sys.argv[0] = 'replay-trainer'; from replay_trainer.cli import main; main()"


@dataclass(slots=True)
class RayNodes:
    """Ray on the hosts of the trainers.

    Attributes:
        scratch: Ray's folder, of a short path; the second node sees one of its own there.
    """

    cluster: Cluster
    scratch: Path

    @property
    def head(self) -> Host:
        return self.cluster.hosts[TRAINERS[0]]

    @property
    def node(self) -> Host:
        return self.cluster.hosts[TRAINERS[1]]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "RAY_TMPDIR": str(self.scratch),
            "HOME": str(self.scratch),
            "RAY_ADDRESS": f"{self.head.address}:{_PORT}",
            "RAY_raylet_start_wait_time_s": "240",
            "RAY_health_check_period_ms": "1000",
            # The name of this machine, by which gloo would find the address, leads to loopback.
            "GLOO_SOCKET_IFNAME": "eth0",
        }

    def start(self) -> None:
        self._start(self.head, "--head", f"--port={_PORT}", "--include-dashboard=false")
        self.add_node()

    def add_node(self) -> None:
        self._start(self.node, f"--address={self.head.address}:{_PORT}")

    def _start(self, host: Host, *options: str) -> None:
        command: list[str | Path] = [
            _RAY, "start", *options, f"--node-ip-address={host.address}", "--num-cpus=1", "--block",
            "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        if host is self.node:
            mount = f"mount -t tmpfs none '{self.scratch}' && exec \"$@\""
            command = ["unshare", "-m", "sh", "-c", mount, "sh", *command]
        log = self.cluster.folder / f"ray-{host.name}.log"
        log.write_text("")
        ours = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        host.start(command, log, ours)
        await_true(lambda: "Ray runtime started" in log.read_text(), f"Ray runs on {host.name}")

    def train(self, run: str, model: Path) -> "Job":
        """Start a job of two ranks from the head."""
        output = self.cluster.folder / run
        values: dict[str, Any] = {
            "model": str(model),
            "output": str(output),
            "num_steps": _NUM_STEPS,
            "global_batch_size": 4,
            "learning_rate": 1e-3,
            "precision": "float32",
            "save_model": False,
            "num_workers": 2,
            "checkpoint_every": 10,
            "max_failures": 5,
            "data": {
                "target": str(write_text(self.cluster.folder / "text" / "stories.parquet")),
                "seq_len": SEQ_LEN,
            },
            "rehearsal": {
                "service_url": self.cluster.urls(),
                "corpus": _CORPUS,
                "run": run,
                "injection_ratio": "0.3",
                "policy": "mix_cd",
                "feedback": "fenced",
                "feedback_lag": 4,
                "window_steps": _WINDOW_STEPS,
            },
        }
        job = self.cluster.folder / f"{run}.toml"
        job.write_text(_toml(values))
        command = [sys.executable, "-c", _TRAIN, "train", job]
        process = self.head.start(command, self.cluster.folder / f"{run}.log", self.environment)
        return Job(run, output, process)


@dataclass(frozen=True, slots=True)
class Job:
    run: str
    output: Path
    process: "subprocess.Popen[bytes]"

    def steps(self) -> list[dict[str, Any]]:
        """The metrics of each step."""
        return [line for line in MetricsFile(self.output / "metrics.jsonl").lines() if line["kind"] == "step"]

    def await_steps(self, number: int) -> None:
        def has_come() -> bool:
            assert self.process.poll() in (None, 0), f"see {self.run}.log"
            return len(self.steps()) >= number

        await_true(has_come, f"the job has trained {number} steps")

    def stood_still(self, provoke: Callable[[], None]) -> float:
        """How long it takes until the job has trained a step more than it has batches for, seconds."""
        before = len(self.steps())
        began = time.monotonic()
        provoke()
        self.await_steps(before + 1 + _MOST_STEPS_AHEAD)
        return time.monotonic() - began

    def await_end(self) -> None:
        assert self.process.wait(timeout=PATIENCE_S) == 0, f"see {self.run}.log"


def _toml(values: dict[str, Any]) -> str:
    """Simple values first, then a table for each dictionary."""

    def lines(table: dict[str, Any]) -> list[str]:
        return [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]

    tables = [[f"[{name}]", *lines(value)] for name, value in values.items() if isinstance(value, dict)]
    return "\n".join([*lines(values), *itertools.chain.from_iterable(tables)])


def train_through_faults(cluster: Cluster, scratch: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Train twice, with faults and without; returns how long the job stood still for each fault, seconds.

    Raises:
        AssertionError: when the two differ.
    """
    model = make_tiny_model(cluster.folder / "model")
    corpus_for(model, cluster.folder / "root", _CORPUS)
    nodes = RayNodes(cluster, scratch)
    nodes.start()
    struck = nodes.train("struck", model)
    stood: dict[str, float] = {}

    def lose_the_node() -> None:
        nodes.node.lose()
        nodes.node.come_back()
        nodes.add_node()

    struck.await_steps(35)
    stood["a Ray node is lost, and another takes its place"] = struck.stood_still(lose_the_node)
    struck.await_steps(70)
    owner = cluster.owner()
    stood["the host of the owner is lost"] = struck.stood_still(owner.lose)
    owner.come_back()
    cluster.start_replica(owner)
    for name, seconds in stood.items():
        say(f"{name}: {seconds:.1f} s")
    struck.await_end()
    calm = nodes.train("calm", model)
    calm.await_end()
    check(cluster, struck, calm)
    return stood


def check(cluster: Cluster, struck: Job, calm: Job) -> None:
    """Compare the losses, the rehearsed rows and the plans of two jobs."""
    found, expected = struck.steps(), calm.steps()
    assert [each["step"] for each in found] == list(range(_NUM_STEPS))
    for column in ("target_loss", "num_rehearsed", "num_workers"):
        assert [each[column] for each in found] == [each[column] for each in expected], column
    host = cluster.replicas[0]
    said = [cluster.ask(host, "plans", cluster.urls(), each.run, str(_NUM_STEPS)) for each in (struck, calm)]
    assert said[0] == said[1], "the plans are others"
    stats = json.loads(cluster.ask(host, "stats", cluster.urls(), struck.run))
    rehearsed = sum(map(len, json.loads(said[0])))
    assert stats["rows_rehearsed"] == rehearsed == sum(each["num_rehearsed"] for each in found), stats
    assert 0 <= stats["rows_due"] - rehearsed < 1 and stats["num_pending"] == 0, stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lease-s", type=float, default=15.0)
    parser.add_argument("--folder", type=Path, help="keep the logs there")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the hosts are removed
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch, tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with running_cluster(folder, asked.lease_s, 0.0) as cluster:
            stood = train_through_faults(cluster, Path(scratch), lambda line: print(line, flush=True))
    print(f"\n| fault, with a lease of {asked.lease_s:g} s | the job stood still for |\n| --- | --- |")
    for name, seconds in stood.items():
        print(f"| {name} | {seconds:.1f} s |")


if __name__ == "__main__":
    main()
