"""All faults of a cluster, with a short lease: nothing is lost, and no plan changes."""

import tempfile
from pathlib import Path

import pytest

from tests.cluster.cluster import running_cluster
from tests.cluster.faults import FAULTS, provoke
from tests.cluster.hosts import can_make_hosts
from tests.cluster.ray_nodes import train_through_faults
from tests.databases import find_postgresql

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not can_make_hosts(), reason="only root may make network namespaces"),
    pytest.mark.skipif(find_postgresql() is None, reason="PostgreSQL is not installed"),
]


def test_training_goes_on_through_every_fault(tmp_path: Path) -> None:
    with running_cluster(tmp_path, lease_s=5.0, away_s=15.0) as cluster:
        provoke(cluster, list(FAULTS), print)


def test_a_job_of_ray_train_goes_on_through_a_lost_node_and_a_lost_owner(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch, running_cluster(tmp_path, 5.0, 0.0) as cluster:
        train_through_faults(cluster, Path(scratch), print)
