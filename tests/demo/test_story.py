"""The demo's whole path on the real model, and what its numbers mean."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replay_service.demo.jobs import CORPUS, FAST, RUN
from replay_service.demo.report import Outcome
from replay_service.sampling.injection import exact_ratio, num_rehearsed
from replay_trainer.client import ReplayClient
from replay_trainer.job.metrics import MetricsFile
from tests.support import running_service

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that `replay-service demo --fast` leaves, and what it printed."""
    folder, home = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("home")
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    done = subprocess.run(
        [sys.executable, "-m", "replay_service", "demo", "--fast", "--folder", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(home), "XDG_CACHE_HOME": cache},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return folder, done.stdout


@pytest.fixture(scope="module")
def outcomes(told: tuple[Path, str]) -> tuple[Outcome, Outcome]:
    folder, _ = told
    return tuple(  # type: ignore[return-value]
        Outcome.read(name, folder / name, FAST.global_batch_size) for name in ("with_rehearsal", "without_rehearsal")
    )


@pytest.fixture(scope="module")
def statistics(told: tuple[Path, str]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """What the service says of the demo's run when it serves the demo's folder again."""
    with running_service(told[0]) as (base_url, _), ReplayClient(base_url) as client:
        yield client.stats(RUN), client.strata(RUN)


def test_rehearsal_forgets_less(outcomes: tuple[Outcome, Outcome]) -> None:
    rehearsed, plain = outcomes
    assert plain.mean_forgetting() > 0.05
    assert rehearsed.mean_forgetting() < plain.mean_forgetting() - 0.05


def test_both_jobs_learn_the_target(outcomes: tuple[Outcome, Outcome]) -> None:
    for outcome in outcomes:
        assert outcome.last["target"] < outcome.base["target"] - 0.05


def test_both_jobs_begin_with_the_same_model(outcomes: tuple[Outcome, Outcome]) -> None:
    rehearsed, plain = outcomes
    assert rehearsed.base == plain.base
    assert len(rehearsed.base) == 5


def test_the_achieved_ratio_is_exact(told: tuple[Path, str], outcomes: tuple[Outcome, Outcome]) -> None:
    lines = MetricsFile(told[0] / "with_rehearsal" / "metrics.jsonl").lines()
    counts = [line["num_rehearsed"] for line in lines if line["kind"] == "step"]
    ratio = exact_ratio(FAST.injection_ratio)
    assert counts == [num_rehearsed(step, ratio, FAST.global_batch_size) for step in range(FAST.num_steps)]
    assert outcomes[0].num_rehearsed == ratio * outcomes[0].num_trained
    assert outcomes[1].num_rehearsed == 0


def test_the_statistics_are_the_reports(
    outcomes: tuple[Outcome, Outcome], statistics: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    stats, strata = statistics
    assert stats["num_reported"] == stats["rows_rehearsed"] == outcomes[0].num_rehearsed
    assert stats["num_pending"] == 0
    assert stats["next_step"] == FAST.num_steps
    assert 0 < stats["flip_rate"] < 0.5
    for name in ("num_reported", "num_tokens", "num_flips"):
        assert sum(each[name] for each in strata) == stats[name]
    assert sum(each["draw_share"] for each in strata) == pytest.approx(1.0)


def test_the_corpus_has_four_domains_and_two_languages(
    statistics: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    domains = {each["domain"] for each in statistics[1]}
    assert domains == {"encyclopedia_en", "encyclopedia_fr", "python_manual", "python_source"}


def test_it_shows_a_table_a_picture_and_where_to_look(told: tuple[Path, str]) -> None:
    folder, output = told
    assert "forgetting, mean" in output
    assert "rehearsal share" in output
    assert "12.50%" in output
    assert f"/v1/runs/{RUN}/strata" in output
    assert re.search(rf"^  http://[^ ]+:[0-9]+/runs/{RUN}$", output, re.MULTILINE)
    assert (folder / "forgetting.png").stat().st_size > 10_000
    assert (folder / "corpora" / CORPUS / "manifest.json").exists()
