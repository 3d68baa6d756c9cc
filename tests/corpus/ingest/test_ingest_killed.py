"""The same corpus from any number of scorers, and however often its ingest was killed or stopped."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from replay_service.corpus.format.manifest import MANIFEST_NAME, read_manifest
from replay_service.corpus.ingest.driver import ingest
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.corpus.ingest.shard_list import read_shard_list
from replay_service.corpus.ingest.staging import ReadyRows, parts_of
from replay_service.corpus.ingest.status import IngestProgress, read_status
from tests.corpus.ingested import NAME, content_of, settings_of
from tests.corpus.worlds import sentences, write_jsonl

LINES = 80
NUM_SHARDS = 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number in range(NUM_SHARDS):
        write_jsonl(folder / f"d{number % 2}/{number}.jsonl", [None, *sentences(f"shard {number}", LINES)])
    write_jsonl(folder / "d2/blank.jsonl", ["", ""])
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tiny_model: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus that one scorer makes in one go."""
    settings = settings_of(source, tmp_path_factory.mktemp("whole"), tiny_model)
    ingest(settings)
    return settings.corpus_folder


def test_three_scorers_make_the_same_corpus_as_one_byte_by_byte(
    whole: Path, source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    ingest(settings_of(source, tmp_path, tiny_model, num_scorers=3))
    assert content_of(tmp_path / NAME) == content_of(whole)


def rows_kept(folder: Path) -> int:
    """The rows of a corpus that stand in segments, and those that are staged after them without a gap."""
    manifest = read_manifest(folder) if (folder / MANIFEST_NAME).exists() else None
    num_rows, num_shards, ahead = 0, 0, 0
    if manifest is not None:
        num_rows, num_shards, ahead = manifest.num_samples, manifest.num_shards, manifest.num_rows_of_next_shard
    for each in read_shard_list(folder)[num_shards:]:
        for staging in folder.glob("staging/*"):
            ready = ReadyRows()
            ready.add(parts_of(staging, each.key))
            num_rows += max(0, ready.stop - ahead)
        ahead = 0
    return num_rows


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_an_ingest_that_is_killed_at_any_moment_goes_on_where_it_was(
    whole: Path, source: Path, tiny_model: Path, tmp_path: Path, kills: int
) -> None:
    rng, num_samples = random.Random(kills), read_manifest(whole).num_samples
    log, environment = tmp_path / "log", {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    scored = kept = 0
    for remaining in range(kills, 0, -1):
        rows, seconds = rng.uniform(0, (num_samples - kept) / (remaining + 1)), rng.uniform(0, 0.1)
        arguments = [source, tmp_path, tiny_model, remaining % 2 + 1, log, int(rows), seconds]
        command = [sys.executable, "-m", "tests.corpus.killed_ingest", *map(str, arguments)]
        assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
        status = read_status(tmp_path / NAME)
        assert status is not None and not status.is_alive
        scored += int(log.read_text().split()[-1])
        kept, before = rows_kept(tmp_path / NAME), kept
        assert kept >= before
    progress = [IngestProgress(0, 0, 0.0, 0, 0, 0, 0)]
    ingest(settings_of(source, tmp_path, tiny_model), progress.append)
    assert content_of(tmp_path / NAME) == content_of(whole)
    assert progress[-1].num_rows <= num_samples - kept
    rows_of_a_shard = num_samples / NUM_SHARDS
    assert scored + progress[-1].num_rows <= num_samples + kills * 2 * rows_of_a_shard


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ScoreParts", "_pack_shards"])
def test_a_worker_that_dies_is_replaced(
    whole: Path, source: Path, tiny_model: Path, tmp_path: Path, stage: str
) -> None:
    killed: list[int] = []

    def kill_once(progress: IngestProgress) -> None:
        for each in psutil.Process().children(recursive=True) if progress.num_rows and not killed else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                if stage in " ".join(each.cmdline()):
                    killed.append(each.pid)
                    each.kill()

    manifest = ingest(settings_of(source, tmp_path, tiny_model), kill_once)
    assert len(killed) == 1
    assert content_of(tmp_path / NAME) == content_of(whole)
    assert manifest == read_manifest(whole)


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(1200):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about within 120 s")


def test_an_ingest_that_is_stopped_keeps_what_is_scored_and_goes_on_there(
    source: Path, tiny_model: Path, tmp_path: Path, ray_session: None
) -> None:
    settings = settings_of(source, tmp_path, tiny_model, num_clusters=3, rows_per_segment=100)
    first: list[IngestProgress] = []
    stopped = ingest(settings, first.append, lambda: first[-1].generation >= 1)
    status = read_status(settings.corpus_folder)
    assert status is not None and status.state == "stopped"
    assert stopped == read_manifest(settings.corpus_folder)
    assert 100 <= stopped.num_samples <= rows_kept(settings.corpus_folder)
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])

    second: list[IngestProgress] = []
    rows_before = rows_kept(settings.corpus_folder)
    manifest = ingest(settings, second.append)
    assert second[-1].num_rows == manifest.num_samples - rows_before
    assert_clusters(settings, manifest.num_samples)
    assert manifest.segments[: len(stopped.segments)] == stopped.segments
    assert manifest == read_manifest(settings.corpus_folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_stopped_by_a_signal_says_so_and_can_go_on(
    source: Path, tiny_model: Path, tmp_path: Path, ray_session: None, number: int, code: int
) -> None:
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    for shard in range(40):
        write_jsonl(tmp_path / f"source/{shard}.jsonl", sentences(f"shard {shard}", 200))
    arguments = ["ingest", tmp_path / "source", "--corpus", NAME, "--root", tmp_path, "--model", tiny_model]
    command = [sys.executable, "-m", "replay_service", *map(str, arguments), "--seq-len", "16"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        folder = tmp_path / "corpora" / NAME
        wait_until(lambda: any(folder.glob("staging/*/*/*.arrow")))
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "stopped; run the same command again to go on" in said
    assert "Traceback" not in said
    status = read_status(folder)
    assert status is not None and status.state == "stopped"
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


def assert_clusters(settings: IngestSettings, num_samples: int) -> None:
    manifest = read_manifest(settings.corpus_folder)
    assert manifest.partition_by == "cluster"
    assert {group.name for group in manifest.groups} <= {"cluster-0", "cluster-1", "cluster-2"}
    assert len(manifest.groups) > 1
    assert manifest.partition().num_samples == num_samples
    assert {domain.name for domain in manifest.domains} == {"d0", "d1"}
