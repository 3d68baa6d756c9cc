"""Faults of a cluster while two ranks train, one after the other, and how long the ranks stood still for each.

    python -m tests.cluster.faults [--lease-s 15] [--away-s 60] [--only NAME ...]

Six hosts are network namespaces of this machine: a PostgreSQL server, three replicas of the service, two trainers.
After all faults the batches of both ranks must be those of an undisturbed run, the journal must be right, the ratio
exact, and no report may be lost. Needs root, iproute2 and PostgreSQL.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from tests.cluster.cluster import PATIENCE_S, TRAINERS, Cluster, Ranks, running_cluster
from tests.cluster.trainer import STEP_S

_STEPS_AFTER: Final = 10
"""How many steps each rank must train after a fault, before it is made good."""
RUN: Final = {
    "corpus": "wiki",
    "global_batch_size": 16,
    "injection_ratio": "0.25",
    "policy": "mix_cd",
    "seed": 7,
    "feedback": {"mode": "fenced", "lag": 4},
}


Fault = Callable[[Cluster, Ranks], None]


def owner_killed(cluster: Cluster, ranks: Ranks) -> None:
    """the owner's host is lost"""
    owner = cluster.owner()
    owner.lose()
    ranks.await_steps(_STEPS_AFTER)
    owner.come_back()
    cluster.start_replica(owner)


def owner_paused(cluster: Cluster, ranks: Ranks) -> None:
    """the owner is paused, and goes on"""
    owner = cluster.owner()
    owner.signal_all(signal.SIGSTOP)
    time.sleep(cluster.away_s)
    owner.signal_all(signal.SIGCONT)
    ranks.await_steps(_STEPS_AFTER)
    assert cluster.owner() is not owner


def owner_without_database(cluster: Cluster, ranks: Ranks) -> None:
    """the owner is cut off from the database alone"""
    owner = cluster.owner()
    owner.cut_off_from(cluster.database)
    ranks.await_steps(_STEPS_AFTER)
    owner.rejoin(cluster.database)


def owner_without_gateways(cluster: Cluster, ranks: Ranks) -> None:
    """the owner is cut off from all but the database"""
    owner = cluster.owner()
    others = [each for each in cluster.hosts.values() if each not in (owner, cluster.database)]
    owner.cut_off_from(*others)
    ranks.await_steps(_STEPS_AFTER)
    owner.rejoin(*others)


def gateway_killed(cluster: Cluster, ranks: Ranks) -> None:
    """a gateway is killed"""
    for host in cluster.replicas:
        gateways = [each for each in host.all_processes() if "gateway" in _command(each)]
        gateways[0].kill()
    ranks.await_steps(_STEPS_AFTER)


def first_address_dropped(cluster: Cluster, ranks: Ranks) -> None:
    """the trainers' first addresses no longer answer"""
    for number, name in enumerate(TRAINERS):
        cluster.hosts[name].cut_off_from(cluster.replicas[number])
    ranks.await_steps(_STEPS_AFTER)
    for number, name in enumerate(TRAINERS):
        cluster.hosts[name].rejoin(cluster.replicas[number])


def lost_within_commit(cluster: Cluster, ranks: Ranks) -> None:
    """the owner's host is lost within a transaction that holds the run"""
    owner = cluster.owner()
    holder = ["ip", "netns", "exec", owner.namespace, sys.executable, "-m", "tests.cluster.asking", "hold"]
    with subprocess.Popen([*holder, cluster.database_url, ranks.run], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        owner.lose()
        process.kill()
    ranks.await_steps(_STEPS_AFTER)
    owner.come_back()
    cluster.start_replica(owner)


def database_killed(cluster: Cluster, ranks: Ranks) -> None:
    """the database is killed, and starts again after 10 s"""
    cluster.database.signal_all(signal.SIGKILL)
    for each in cluster.database.processes:
        each.wait(timeout=60)
    cluster.database.processes.clear()
    time.sleep(10)
    (cluster.database_files / "postmaster.pid").unlink(missing_ok=True)
    cluster.start_database()
    ranks.await_steps(_STEPS_AFTER)


def database_silent(cluster: Cluster, ranks: Ranks) -> None:
    """the database is silent, and goes on"""
    cluster.database.signal_all(signal.SIGSTOP)
    time.sleep(cluster.away_s)
    cluster.database.signal_all(signal.SIGCONT)
    ranks.await_steps(_STEPS_AFTER)


def rolling_restart(cluster: Cluster, ranks: Ranks) -> None:
    """all replicas are restarted, one after the other"""
    for host in cluster.replicas:
        for each in host.processes:
            each.terminate()
            each.wait(timeout=60)
        host.processes.clear()
        cluster.start_replica(host)
        cluster.await_ready()
    ranks.await_steps(_STEPS_AFTER)


def two_candidates(cluster: Cluster, ranks: Ranks) -> None:
    """the lease is taken away from the owner by another replica, again and again"""
    for _ in range(3):
        cluster.ask(cluster.database, "expel", cluster.database_url)
        ranks.await_steps(2)
    ranks.await_steps(_STEPS_AFTER)


FAULTS: Final[dict[str, Fault]] = {
    each.__name__: each
    for each in (
        owner_killed,
        owner_paused,
        owner_without_database,
        owner_without_gateways,
        gateway_killed,
        first_address_dropped,
        lost_within_commit,
        database_killed,
        database_silent,
        rolling_restart,
        two_candidates,
    )
}


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess):
        return list(process.cmdline())
    return []


def provoke(cluster: Cluster, names: list[str], say: Callable[[str], None]) -> dict[str, float]:
    """Let the ranks train through the faults; returns how long they stood still for each, seconds.

    Raises:
        AssertionError: when anything was lost, or any plan changed.
    """
    ranks = Ranks(cluster, "disturbed")
    cluster.ask(cluster.hosts[TRAINERS[0]], "create", cluster.urls(), ranks.run, json.dumps(RUN))
    ranks.start()
    ranks.await_steps(_STEPS_AFTER)
    stood: dict[str, float] = {}
    for name in names:
        cluster.await_ready()
        began = time.monotonic()
        FAULTS[name](cluster, ranks)
        stood[name] = ranks.stood_still(began)
        say(f"{name}: {stood[name]:.1f} s")
    end = ranks.stop()
    cluster.await_ready()
    check(cluster, ranks, end)
    return stood


def check(cluster: Cluster, ranks: Ranks, end: int) -> None:
    """Compare with a run that nobody disturbs, and verify the journal."""
    calm = Ranks(cluster, "calm")
    cluster.ask(cluster.hosts[TRAINERS[0]], "create", cluster.urls(), calm.run, json.dumps(RUN))
    for rank in range(2):
        calm.file(rank).with_suffix(".stop").write_text(str(end))
    calm.start()
    for name in TRAINERS:
        for each in cluster.hosts[name].processes:
            assert each.wait(timeout=PATIENCE_S + 10 * end * STEP_S) == 0
    for rank in range(2):
        found, expected = ([each["ids"] for each in trained.lines(rank)] for trained in (ranks, calm))
        assert len(found) == end and found == expected, f"the batches of rank {rank} are others"
    host = cluster.hosts[TRAINERS[0]]
    stats = json.loads(cluster.ask(host, "stats", cluster.urls(), ranks.run))
    rehearsed = sum(len(each["ids"]) for rank in range(2) for each in ranks.lines(rank))
    assert stats["rows_rehearsed"] == rehearsed and 0 <= stats["rows_due"] - rehearsed < 1, stats
    assert stats["num_pending"] == 0, "a report was lost"
    verify = [
        sys.executable,
        "-m",
        "replay_service",
        "journal",
        "verify",
        ranks.run,
        "--root",
        str(cluster.folder / "root"),
    ]
    for replica in cluster.replicas:
        verified = subprocess.run(
            ["ip", "netns", "exec", replica.namespace, *verify, "--database-url", cluster.database_url],
            capture_output=True,
            text=True,
            check=False,
        )
        assert verified.returncode == 0, verified.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lease-s", type=float, default=15.0)
    parser.add_argument("--away-s", type=float, default=60.0)
    parser.add_argument("--only", nargs="*", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--folder", type=Path, help="keep the logs there")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the hosts are removed
    with tempfile.TemporaryDirectory(prefix="replay-cluster-") as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with running_cluster(folder, asked.lease_s, asked.away_s) as cluster:
            stood = provoke(cluster, asked.only, lambda line: print(line, flush=True))
    print(f"\n| fault, with a lease of {asked.lease_s:g} s | the ranks stood still for |\n| --- | --- |")
    for name, seconds in stood.items():
        print(f"| {FAULTS[name].__doc__} | {seconds:.1f} s |")


if __name__ == "__main__":
    main()
