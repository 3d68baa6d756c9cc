"""A job whose number of workers changes while it trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from replay_trainer.client import ReplayClient
from replay_trainer.job.loop import fine_tune
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.job.ray_train import preflight
from tests.trainer.job.elastic import NUM_STEPS, the_job
from tests.trainer.worlds import AloneWorker

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_a_job_takes_in_a_machine_that_comes_and_trains_on_the_same_rows(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    alone = the_job(tmp_path / "alone", tiny_model, service_url, "steady")
    fine_tune(alone, preflight(alone), AloneWorker())
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "tests.trainer.job.elastic", str(tmp_path / "job"), str(tiny_model), service_url]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=280)
    expected, found = (list(MetricsFile(tmp_path / name / "metrics.jsonl").lines()) for name in ("alone", "job"))
    sizes = [step["num_workers"] for step in found]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] == 3
    assert [step["step"] for step in found] == list(range(NUM_STEPS))
    assert [step["target_loss"] for step in found] == pytest.approx(
        [step["target_loss"] for step in expected], abs=1e-3
    )
    with ReplayClient(service_url) as client:
        plans = [client.batch(run, 0, num_steps=NUM_STEPS).sample_id.tolist() for run in ("steady", "elastic")]
        stats = client.stats("elastic")
    assert plans[0] == plans[1]
    assert (stats["num_reported"], stats["num_pending"]) == (stats["rows_rehearsed"], 0)
