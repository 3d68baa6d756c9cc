import json
import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from replay_service.sampling.injection import exact_ratio, num_rehearsed
from replay_service.stopping import Stopped, stop_signals
from replay_trainer.client import ReplayClient
from replay_trainer.config import TrainConfig
from replay_trainer.errors import CorpusMismatch, InvalidTraining, ServiceRefused, TokenRefused
from replay_trainer.job.loop import fine_tune
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.job.ray_train import preflight, run_training
from tests.gateway.worlds import make_token
from tests.language.faulty_models import with_prefix
from tests.support import make_tiny_model, running_service
from tests.trainer.worlds import AloneWorker, a_job, corpus_for

pytestmark = pytest.mark.usefixtures("ray_session")


def steps_of(output: Path) -> list[dict[str, float]]:
    return [line for line in MetricsFile(output / "metrics.jsonl").lines() if line["kind"] == "step"]


def test_two_workers_rehearse_exactly_what_is_planned(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    job = a_job(tmp_path, tiny_model, service_url, run="two", num_workers=2, policy="mix_cd", save_model=True)
    run_training(job)
    ratio = exact_ratio("0.3")
    assert [step["num_rehearsed"] for step in steps_of(tmp_path)] == [num_rehearsed(s, ratio, 4) for s in range(10)]
    with ReplayClient(service_url) as client:
        stats = client.stats("two")
    assert (stats["rows_rehearsed"], stats["num_reported"], stats["num_pending"]) == (12, 12, 0)
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert json.loads((tmp_path / "config.json").read_text())["num_steps"] == 10


def test_the_workers_have_the_token_of_whoever_started_the_job(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray was started before: its processes do not have the token from their environment."""
    corpus_for(tiny_model, tmp_path)
    token = make_token(tmp_path, "train", runs=("guarded",))
    with running_service(tmp_path) as (base_url, _):
        with pytest.raises(TokenRefused, match="REPLAY_TOKEN"):
            preflight(a_job(tmp_path / "refused", tiny_model, base_url, run="guarded"))
        monkeypatch.setenv("REPLAY_TOKEN", token)
        run_training(a_job(tmp_path / "job", tiny_model, base_url, run="guarded", num_steps=4))
        with ReplayClient(base_url) as client:
            assert client.stats("guarded")["num_reported"] == 4
    for file in (tmp_path / "job").rglob("*"):
        assert file.is_dir() or token.encode() not in file.read_bytes(), file


def test_a_killed_worker_resumes_to_the_same_losses(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    changes = {"num_steps": 60, "checkpoint_every": 10, "max_failures": 3}
    calm, struck = (a_job(tmp_path / name, tiny_model, service_url, run=name, **changes) for name in ("calm", "struck"))
    fine_tune(calm, preflight(calm), AloneWorker())
    killer = threading.Thread(target=kill_a_worker_after, args=(struck.output, 25))
    killer.start()
    run_training(struck)
    killer.join()
    expected, got = steps_of(calm.output), steps_of(struck.output)
    assert [step["step"] for step in got] == list(range(60))
    assert [step["target_loss"] for step in got] == [step["target_loss"] for step in expected]
    with ReplayClient(service_url) as client:
        stats = client.stats("struck")
    assert (stats["num_reported"], stats["num_pending"]) == (72, 0)


def test_a_signal_ends_a_job_with_the_exit_code_of_shells(tmp_path: Path, tiny_model: Path) -> None:
    """Ray Train replaces the handler of SIGINT while it trains."""
    job = a_job(tmp_path, tiny_model, None, num_steps=100_000)
    sender = threading.Thread(target=send_after_a_step, args=(job.output, signal.SIGINT))
    sender.start()
    with pytest.raises(Stopped) as stopped, stop_signals():
        run_training(job)
    sender.join()
    assert stopped.value.exit_code == 130


def send_after_a_step(output: Path, number: int) -> None:
    while not steps_of(output):
        threading.Event().wait(0.02)
    os.kill(os.getpid(), number)


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_a_job_goes_on_with_more_workers_than_made_its_checkpoint(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    """Three workers do not divide the four rows of a step."""
    changes = {"schedule": "constant", "checkpoint_every": 6, "policy": "mix_cd"}

    def job(folder: str, run: str, **more: int) -> TrainConfig:
        fenced = {"feedback": "fenced", "feedback_lag": 3}
        return a_job(tmp_path / folder, tiny_model, service_url, run=run, rehearsal=fenced, **changes, **more)

    whole = job("whole", "sizes-whole", num_steps=12)
    fine_tune(whole, preflight(whole), AloneWorker())
    run_training(job("job", "sizes", num_steps=6, num_workers=2))
    run_training(job("job", "sizes", num_steps=12, num_workers=3))
    expected, found = steps_of(tmp_path / "whole"), steps_of(tmp_path / "job")
    assert [step["num_workers"] for step in found] == [2] * 6 + [3] * 6
    assert [step["target_loss"] for step in found] == pytest.approx(
        [step["target_loss"] for step in expected], abs=1e-4
    )
    with ReplayClient(service_url) as client:
        plans = [[client.batch(run, step).sample_id.tolist() for step in range(12)] for run in ("sizes", "sizes-whole")]
    assert plans[0] == plans[1]


def kill_a_worker_after(output: Path, num_steps: int) -> None:
    """SIGKILL the training process once it has made some steps; those of another test's Ray are left alone."""
    while len(steps_of(output)) < num_steps:
        threading.Event().wait(0.02)
    victims = [
        each for each in psutil.Process().children(recursive=True) if "RayTrainWorker" in "".join(each.cmdline())
    ]
    assert victims
    for each in victims:
        each.kill()


def test_an_error_of_the_service_comes_up_as_itself(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    preflight(a_job(tmp_path, tiny_model, service_url, run="taken"))
    with pytest.raises(ServiceRefused, match="exists with another configuration"):
        run_training(a_job(tmp_path, tiny_model, service_url, run="taken", injection_ratio="0.5"))


def test_another_tokenizer_is_refused(tmp_path: Path, service_url: str) -> None:
    other = make_tiny_model(tmp_path / "other", vocab_size=280)
    with pytest.raises(CorpusMismatch, match="tokenizer"):
        preflight(a_job(tmp_path, other, service_url, run="other"))


def test_a_model_whose_weights_are_not_all_there_is_refused_before_any_worker(tmp_path: Path, tiny_model: Path) -> None:
    model = with_prefix(tiny_model, tmp_path / "compiled", "_orig_mod.")
    with pytest.raises(InvalidTraining, match="would stay random"):
        preflight(a_job(tmp_path, model, None))


def test_rows_of_another_width_are_refused(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    job = a_job(tmp_path, tiny_model, service_url, run="wide")
    wide = job.model_copy(update={"data": job.data.model_copy(update={"seq_len": 20})})
    with pytest.raises(CorpusMismatch, match="have 12 tokens"):
        preflight(wide)


def test_rows_beyond_the_model_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    job = a_job(tmp_path, tiny_model, None)
    with pytest.raises(InvalidTraining, match="beyond the model's 64 positions"):
        preflight(job.model_copy(update={"data": job.data.model_copy(update={"seq_len": 65})}))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidTraining, match="no-such-model"):
        preflight(a_job(tmp_path, tmp_path / "no-such-model", None))
