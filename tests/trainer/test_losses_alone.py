"""The losses of the loops, target and rehearsed, are those of each sample alone through the model.

Those of accelerate and Lightning are in test_loops.py, those of trl in test_trl.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoModelForCausalLM

from replay_service.language.model import load_model
from replay_trainer.batches.added import Added
from replay_trainer.batches.apart import ApartInputs
from replay_trainer.batches.mixing import MixedBatch
from replay_trainer.client import ReplayClient
from replay_trainer.dataset import RehearsalDataset
from replay_trainer.hf import RehearsalTrainer
from replay_trainer.job.loop import fine_tune
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.job.objective import Objective
from replay_trainer.job.ray_train import preflight
from replay_trainer.plain import Rehearsal
from replay_trainer.rehearsal_loop import RehearsalLoop
from tests.trainer.alone import Part, mean_loss, mean_losses, rehearsed_of
from tests.trainer.hf_worlds import arguments, dataset
from tests.trainer.worlds import AloneWorker, a_job

NUM_STEPS = 3
SETTINGS = {"global_batch_size": 4, "injection_ratio": "0.4", "injection_mode": "add", "policy": "uniform"}
WIDTHS = {"shorter rows": 4, "rows almost as long": 10, "longer rows": 20}
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata with torch 2.13


@pytest.fixture
def client(service_url: str) -> Iterator[ReplayClient]:
    with ReplayClient(service_url) as found:
        yield found


@pytest.fixture
def model(tiny_model: Path) -> nn.Module:
    found: nn.Module = AutoModelForCausalLM.from_pretrained(tiny_model)
    return found


def a_run(client: ReplayClient, run: str, **changes: Any) -> Rehearsal:
    client.ensure_run(run, "wiki", {**SETTINGS, **changes})
    return Rehearsal(client, run)


def rows(width: int) -> list[dict[str, torch.Tensor]]:
    return [{name: torch.tensor(row[name]) for name in ("input_ids", "labels")} for row in dataset(12, width)]


class Watched(RehearsalTrainer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.parts: list[Part] = []
        self.num_apart = 0

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        batch = inputs["mixed_with_rehearsal"]
        self.parts.append(Part.of(batch, self.state.global_step))
        self.num_apart += isinstance(batch, ApartInputs)
        return super().compute_loss(model, inputs, *args, **options)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_those_of_transformers_trainer(client: ReplayClient, model: nn.Module, tmp_path: Path, width: int) -> None:
    trainer = Watched(
        rehearsal=a_run(client, f"alone-trainer-{width}"),
        model=model,
        args=arguments(
            tmp_path,
            max_steps=NUM_STEPS,
            learning_rate=0.0,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
        ),
        train_dataset=dataset(12, width),
    )
    trainer.train()
    lines = [each for each in trainer.state.log_history if "loss" in each]
    assert trainer.num_apart == (2 * NUM_STEPS if width == 4 else 0)
    for step, line in enumerate(lines):
        parts = [part for part in trainer.parts if part.step == step]
        expected = {
            "loss": mean_loss(model, [each for part in parts for each in part.samples]),
            **mean_losses(model, parts),
        }
        assert {name: line[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert len(lines) == NUM_STEPS


def check_part(loop: RehearsalLoop, model: nn.Module, batch: Added) -> None:
    """Train on a micro-batch as the pages of the documentation show, and compare its losses."""
    output: Any = model(**batch.inputs)
    if isinstance(batch, ApartInputs):
        losses = batch.losses(model(**batch.rehearsed_inputs).logits)
        loss = batch.weigh(output.loss, losses)
    else:
        losses, loss = batch.losses(output.logits), output.loss
    loop.report(batch, losses)
    part = Part.of(batch)
    assert loss.item() == pytest.approx(mean_loss(model, part.samples), abs=1e-5)
    nats, num = losses.total()
    if part.rehearsed:
        assert (nats / num).item() == pytest.approx(mean_loss(model, part.rehearsed), abs=1e-5)


@pytest.mark.parametrize("apart", [False, True], ids=["one pass", "two passes"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_those_of_a_plain_loop(client: ReplayClient, model: nn.Module, width: int, apart: bool) -> None:
    run, ours = f"alone-plain-{width}-{int(apart)}", rows(width)
    with a_run(client, run).open(num_steps=NUM_STEPS) as loop:
        for step in range(NUM_STEPS):
            first = range(4 * step, 4 * step + 4, 2)
            parts = [{name: torch.stack([ours[i][name], ours[i + 1][name]]) for name in ours[i]} for i in first]
            for batch in loop.spread(step, parts, apart=apart):
                check_part(loop, model, batch)
    assert client.stats(run)["num_reported"] == 8


@pytest.mark.parametrize(("mode", "num_workers", "apart"), [("add", 0, False), ("replace", 1, False), ("add", 1, True)])
def test_those_of_the_steps_of_a_stateful_loader(
    client: ReplayClient, model: nn.Module, mode: str, num_workers: int, apart: bool
) -> None:
    rehearsal = a_run(client, f"alone-{mode}-{num_workers}-{int(apart)}", injection_mode=mode)
    steps = RehearsalDataset(rehearsal, rows(10), num_steps=NUM_STEPS, num_parts=2, apart=apart)
    with steps.open() as loop:
        for parts in StatefulDataLoader(steps, batch_size=None, num_workers=num_workers):
            for batch in loop.take(parts):
                assert isinstance(batch, ApartInputs) == apart
                check_part(loop, model, batch)
    stats = client.stats(rehearsal.run)
    assert stats["num_reported"] == stats["rows_rehearsed"] > 0


@pytest.mark.parametrize("chunked_head", [False, True])
def test_those_of_a_job(
    client: ReplayClient, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunked_head: bool
) -> None:
    given: list[MixedBatch] = []
    measure = Objective.measure

    def watched(self: Objective, model: Any, batch: MixedBatch, *args: Any) -> Any:
        given.append(batch)
        return measure(self, model, batch, *args)

    monkeypatch.setattr(Objective, "measure", watched)
    run = f"alone-job-{int(chunked_head)}"
    # Steps so small that the model stays as it is.
    changes: dict[str, Any] = {"num_steps": NUM_STEPS, "learning_rate": 1e-9, "chunked_head": chunked_head}
    job = a_job(tmp_path, tiny_model, client.base_url, run=run, injection_ratio="0.4", **changes)
    fine_tune(job, preflight(job), AloneWorker())
    lines = [each for each in MetricsFile(tmp_path / "metrics.jsonl").lines() if each["kind"] == "step"]
    model = load_model(str(tiny_model))
    for step, (line, batch) in enumerate(zip(lines, given, strict=True)):
        assert batch.rehearsed is not None and batch.weight_BT is None
        ids = [row[:length] for row, length in zip(batch.input_ids_BT, batch.length_B.tolist(), strict=True)]
        part = Part(step, [(each, each) for each in ids[: batch.num_target]], rehearsed_of(batch.rehearsed))
        expected = mean_losses(model, [part])
        assert {name: line[name] for name in expected} == pytest.approx(expected, abs=1e-5)
        assert len(expected) == 2
