"""A cluster that runs already: it is joined, its room is known before the work, and nodes that lack something named."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest

from replay_service.wire.batches import Batch
from tests.corpus.worlds import sentences, write_jsonl
from tests.gateway.worlds import batch_of, create_run, losses_of, report
from tests.ray_clusters import RayCluster, can_hide_folders, ray_cluster
from tests.support import running_service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

JOINED = """
import json, sys
from pathlib import Path
from replay_service.errors import RayUnavailable
from replay_service.ray_cluster import check_nodes, check_room, check_shared, is_spread, why_waiting, worker_nodes
from replay_service.ray_session import start_ray

start_ray()
import ray

def said(check, *arguments):
    try:
        return check(*arguments) or ""
    except RayUnavailable as error:
        return error.detail

@ray.remote(num_cpus=1)
class Actor:
    def is_there(self):
        return True

told = {"cpus": ray.cluster_resources()["CPU"], "nodes": len(worker_nodes()), "is_spread": is_spread()}
told["room"] = said(check_room, [{"CPU": 1}] * 2, "this test", "ask for less")
told["no room"] = said(check_room, [{"CPU": 1}] * 9, "this test", "ask for less")
actors = [Actor.remote() for _ in range(4)]
ray.get([each.is_there.remote() for each in actors])
told["taken"] = said(check_room, [{"CPU": 1}], "this test", "ask for less")
told["why"] = why_waiting()
del actors
told["shared"] = said(check_shared, Path(sys.argv[1]))
told["not shared"] = said(check_shared, Path(sys.argv[2]) / "of/mine")
told["left"] = [each.name for folder in sys.argv[1:] for each in Path(folder).iterdir()]
told["unknown"] = said(check_nodes, lambda: 1 / 0)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def hidden() -> Iterator[Path]:
    """A folder that is another one on the second node."""
    with tempfile.TemporaryDirectory(prefix="hidden-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster(hidden: Path) -> Iterator[RayCluster]:
    """A node with one CPU, and two others that lack what is in `hidden`."""
    if not can_hide_folders():
        pytest.skip("nodes with folders of their own need root and the command unshare")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, ray_cluster(Path(folder)) as started:
        started.start_head(1)
        started.add_node(2, hidden=[hidden])
        started.add_node(1, hidden=[hidden])
        yield started


def test_a_cluster_of_this_machine_is_joined_and_what_it_lacks_is_known_before_the_work(
    cluster: RayCluster, hidden: Path, tmp_path: Path
) -> None:
    ended = cluster.run(JOINED, tmp_path, hidden)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert (told["cpus"], told["nodes"], told["is_spread"]) == (4, 3, True)
    assert told["room"] == told["shared"] == ""
    assert told["no room"].startswith("this test needs 9 CPUs at a time, of which Ray has 4, and ")
    assert told["no room"].endswith("; ask for less, wait for other jobs, or add nodes to the cluster")
    assert "needs 1 CPUs at a time, of which Ray has 4, and 0 free" in told["taken"]
    assert told["why"] == "0 of 4 CPUs free"
    assert told["not shared"].startswith("node ")
    assert f"does not share the folder {hidden}/of/mine" in told["not shared"]
    assert told["left"] == []
    assert "division by zero" in told["unknown"]


def test_a_corpus_made_on_three_nodes_without_a_common_disk_is_the_one_that_a_single_node_makes(
    cluster: RayCluster, hidden: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for number in range(6):
        write_jsonl(tmp_path / f"source/{number}.jsonl", [None, *sentences(f"shard {number}", 60)])
    (tmp_path / "far").mkdir()
    options = (tmp_path / "source", "--corpus", "wiki", "--model", tiny_model, "--seq-len", "32", "--batch-size", "2")
    options = (*options, "--rows-per-segment", "50", "--precision", "float32")
    far = f"file://{tmp_path}/far"
    spread = cluster.command("ingest", *options, "--scorers", "3", "--root", hidden / "root", REPLAY_CORPORA_URL=far)
    assert spread.returncode == 0, spread.stderr
    alone = cluster.command("ingest", *options, "--root", tmp_path / "root", RAY_ADDRESS="local")
    assert alone.returncode == 0, alone.stderr
    there, here = tmp_path / "far/wiki", tmp_path / "root/corpora/wiki"
    for file in ("manifest.json", "shards.jsonl", *(f"segments/{path.name}" for path in here.glob("segments/*"))):
        assert (there / file).read_bytes() == (here / file).read_bytes(), file
    assert_batches_equal(batches_of(hidden / "root", REPLAY_CORPORA_URL=far), batches_of(tmp_path / "root"))


def batches_of(root: Path, **environment: str) -> list[Batch]:
    """Batches of a run whose later plans follow from what was reported of the earlier ones."""
    root.mkdir(exist_ok=True)
    batches = []
    with (
        running_service(root, environment=environment) as (url, _),
        httpx2.Client(base_url=url, timeout=60.0) as client,
    ):
        mix_cd = {"policy": "mix_cd", "sharpness": 2.0, "feedback": {"mode": "fenced", "lag": 1}}
        assert create_run(client, injection_ratio="0.5", **mix_cd).status_code == 201
        for step in range(24):
            batches.append(batch_of(client, step))
            losses = losses_of(batches[-1])
            losses["num_flips"] = batches[-1].sample_id % 7
            assert report(client, losses).status_code == 200
    return batches


def assert_batches_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len({each.tobytes() for batch in first for each in batch.probability}) > 1, "damage moved the draws"
    for one, other in zip(first, second, strict=True):
        for name, column in one.columns().items():
            np.testing.assert_array_equal(column, getattr(other, name), name)


def test_a_node_that_lacks_the_model_or_a_shard_is_named_before_the_work(
    cluster: RayCluster, hidden: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, hidden / "model")
    write_jsonl(hidden / "source/a.jsonl", sentences("some", 9))
    write_jsonl(tmp_path / "source/a.jsonl", sentences("some", 9))
    for source, model, lacks in (
        (tmp_path / "source", hidden / "model", "cannot read the base model"),
        (hidden / "source", tiny_model, f"does not have shard {hidden}/source/a.jsonl"),
    ):
        options = ("--corpus", "wiki", "--model", model, "--root", tmp_path / "root", "--seq-len", "32")
        refused = cluster.command("ingest", source, *options)
        assert refused.returncode == 2
        assert re.search(rf"node \S+ \(\S+\) {re.escape(lacks)}", refused.stderr), refused.stderr
        assert len(refused.stderr.splitlines()) < 5
        assert not (tmp_path / "root/corpora/wiki").exists()
