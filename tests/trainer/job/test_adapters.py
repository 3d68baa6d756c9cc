"""LoRA in the job: adapters learn and are kept, the model stays, and LDIFS takes it as its base."""

from pathlib import Path
from typing import Any

import pytest
import torch

from replay_service.language.model import load_model
from replay_trainer.client import ReplayClient
from replay_trainer.config import TrainConfig
from replay_trainer.errors import InvalidTraining
from replay_trainer.job.loop import fine_tune
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.job.ray_train import preflight
from tests.trainer.worlds import AloneWorker, a_job, write_text

LORA: dict[str, Any] = {"r": 2, "alpha": 8, "target_modules": ("q_proj", "v_proj")}


def a_lora_job(folder: Path, model: Path, url: str | None = None, **changes: Any) -> TrainConfig:
    return a_job(folder, model, url, **{"lora": LORA, "learning_rate": 1e-2, **changes})


def steps_of(job: TrainConfig) -> list[dict[str, Any]]:
    return [line for line in MetricsFile(job.output / "metrics.jsonl").lines() if line["kind"] == "step"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_adapters_learn_and_are_all_that_a_checkpoint_and_the_tuned_model_hold(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    worker = AloneWorker()
    job = a_lora_job(
        tmp_path,
        tiny_model,
        service_url,
        run="lora",
        num_steps=30,
        checkpoint_every=15,
        save_model=True,
        schedule="constant",
    )
    fine_tune(job, preflight(job), worker)
    losses = [step["target_loss"] for step in steps_of(job)]
    assert sum(losses[-5:]) < 0.99 * sum(losses[:5])
    assert worker.state is not None and "model" not in worker.state
    assert all("lora_" in name for name in worker.state["adapters"])
    assert {path.name for path in (tmp_path / "model").glob("*.safetensors")} == {"adapter_model.safetensors"}
    with ReplayClient(service_url) as client:
        stats = client.stats("lora")
    assert (stats["num_reported"], stats["num_pending"]) == (stats["rows_rehearsed"], 0)
    _check_saved(tmp_path / "model", tiny_model, worker.state["adapters"])


def _check_saved(folder: Path, base: Path, adapters: dict[str, torch.Tensor]) -> None:
    from peft import PeftModel

    saved = dict(PeftModel.from_pretrained(load_model(str(base)), folder).named_parameters())
    for name, weight in adapters.items():
        torch.testing.assert_close(saved[name], weight)


def test_a_job_with_adapters_that_resumes_is_bitwise_the_same(tmp_path: Path, tiny_model: Path) -> None:
    job = a_lora_job(tmp_path / "whole", tiny_model, checkpoint_every=6, lora={**LORA, "dropout": 0.2})
    worker = AloneWorker()
    fine_tune(job, "float32", worker)
    again = job.model_copy(update={"output": tmp_path / "again"})
    fine_tune(again, "float32", AloneWorker(worker.state))
    assert [step["target_loss"] for step in steps_of(again)] == [step["target_loss"] for step in steps_of(job)][6:]


@pytest.mark.parametrize("layers", [None, ("model.layers.0",)])
def test_drift_is_from_the_model_without_its_adapters(
    tmp_path: Path, tiny_model: Path, layers: tuple[str, ...] | None
) -> None:
    job = a_lora_job(tmp_path, tiny_model, ldifs={"layers": layers}, num_steps=6, chunked_head=True)
    fine_tune(job, "float32", AloneWorker())
    drift = [step["drift"] for step in steps_of(job)]
    assert drift[0] == 0.0 and drift[-1] > 0.0


def test_heldout_text_is_measured_with_the_adapters(tmp_path: Path, tiny_model: Path) -> None:
    held = str(write_text(tmp_path / "held" / "news.parquet", 5))
    job = a_lora_job(tmp_path, tiny_model, num_steps=20, schedule="constant")
    job = job.model_copy(update={"data": job.data.model_copy(update={"heldout_target": held})})
    fine_tune(job, "float32", AloneWorker())
    evaluations = MetricsFile(job.output / "metrics.jsonl").evaluations()
    assert evaluations[20]["target"] < evaluations[0]["target"]


def test_what_does_not_fit_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(InvalidTraining, match=r"\[lora\] does not fit the model: .*no_proj"):
        fine_tune(a_lora_job(tmp_path, tiny_model, lora={"target_modules": ["no_proj"]}), "float32", AloneWorker())
    worker = AloneWorker()
    fine_tune(a_lora_job(tmp_path, tiny_model, checkpoint_every=10), "float32", worker)
    for lora, message in (({**LORA, "r": 4}, "another r or other target_modules"), (None, "put \\[lora\\] back")):
        with pytest.raises(InvalidTraining, match=message):
            fine_tune(a_lora_job(tmp_path, tiny_model, lora=lora), "float32", AloneWorker(worker.state))
