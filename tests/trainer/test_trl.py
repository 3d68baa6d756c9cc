"""trl's SFTTrainer with rehearsal: the loss of a step is that of its samples, each alone through the model."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer.client import ReplayClient
from tests.trainer.alone import Part, learn, mean_loss, mean_losses, num_predictions, precise
from tests.trainer.trl_loops import KINDS, LEARNS, SEQ_LEN, TOGETHER, losses_of, trainer_of

ROOT = Path(__file__).parents[2]
WORLD_SIZE = 2
pytestmark = pytest.mark.filterwarnings("ignore")  # trl warns of releases to come, and of what no test is about


@pytest.fixture(scope="module")
def service(tiny_model: Path) -> Iterator[ServiceUnderTest]:
    vocab_size = AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size
    with replay_service(seq_len=SEQ_LEN, vocab_size=vocab_size, serve=True) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: ServiceUnderTest) -> Iterator[ReplayClient]:
    with service.client() as found:
        yield found


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_step_is_that_of_its_samples_each_alone(
    client: ReplayClient, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    trainer = trainer_of(client, f"{kind}-alone", kind, tiny_model, tmp_path)
    trainer.train()
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    steps = [[part for part in trainer.parts if part.step == step] for step in range(3)]
    assert losses_of(trainer) == pytest.approx([loss_of(model, parts) for parts in steps], abs=1e-5)
    lines = [each for each in trainer.state.log_history if "loss" in each]
    for figures, parts in zip(lines, steps, strict=True):
        expected = mean_losses(model, parts)
        assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    stats = client.stats(trainer.rehearsal.run)
    assert stats["num_reported"] == stats["rows_rehearsed"] == 8 and stats["num_pending"] == 0
    check_trained(stats, trainer.parts)


def loss_of(model: Any, parts: list[Part]) -> float:
    return mean_loss(model, [each for part in parts for each in part.samples])


def check_trained(stats: dict[str, Any], parts: list[Part]) -> None:
    """Rows and tokens, as the service counts them, are those that the model was given, and of the ratio asked for."""
    rehearsed = [each for part in parts for each in part.rehearsed]
    samples = [each for part in parts for each in part.samples]
    trained = stats["trained"]
    assert (trained["num_rehearsed_rows"], trained["num_rows"]) == (len(rehearsed), len(samples))
    assert trained["num_rehearsed_tokens"] == num_predictions(rehearsed)
    assert trained["num_tokens"] == num_predictions(samples)


def test_training_on_packed_rows_that_resumes_goes_on_bitwise(
    client: ReplayClient, tiny_model: Path, tmp_path: Path
) -> None:
    def trainer() -> Any:
        saved = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}
        return trainer_of(client, "resumed", "packed", tiny_model, tmp_path, **saved)

    whole, resumed = trainer(), trainer()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert len(resumed.parts) == 4 and losses_of(resumed) == losses_of(whole)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert client.stats("resumed")["num_reported"] == 8


def test_adapters_alone_learn_from_rehearsed_rows(client: ReplayClient, tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_of(client, "adapted", "peft", tiny_model, tmp_path, learning_rate=1e-2)
    before = {name: each.clone() for name, each in trainer.model.named_parameters()}
    trainer.train()
    changed = [name for name, each in trainer.model.named_parameters() if not each.equal(before[name])]
    assert changed and all("lora" in name for name in changed)


@pytest.fixture(scope="module")
def together(service: ServiceUnderTest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes wrote what they trained on."""
    folder: Path = tmp_path_factory.mktemp("together")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD_SIZE)]
    module = ["-m", "tests.trainer.trl_loops", service.url, str(tiny_model), str(folder)]
    subprocess.run([sys.executable, *command, *module], check=True, cwd=ROOT, timeout=250)
    return folder


def of_ranks(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{kind}-{rank}.pt", weights_only=False) for rank in range(WORLD_SIZE)]


def test_the_loss_of_a_step_is_that_of_the_samples_of_all_processes(together: Path, tiny_model: Path) -> None:
    ranks = of_ranks(together, "packed")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    parts = [part for each in ranks for part in each["parts"]]
    expected = [loss_of(model, [part for part in parts if part.step == step]) for step in range(3)]
    assert ranks[0]["losses"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", TOGETHER)
def test_processes_train_on_the_ratio_that_was_asked_for(client: ReplayClient, together: Path, kind: str) -> None:
    ranks = of_ranks(together, kind)
    num_rows = sum(each["num_rows"] for each in ranks)
    rehearsed = [sum(len(part.rehearsed) for part in each["parts"]) for each in ranks]
    assert num_rows == 12
    assert sum(rehearsed) / (sum(rehearsed) + num_rows) == 0.4
    assert max(rehearsed) - min(rehearsed) <= 1
    stats = client.stats(f"{kind}-together")
    assert (stats["num_reported"], stats["rows_rehearsed"], stats["num_pending"]) == (8, 8, 0)
    assert stats["state"] == "finished"
    check_trained(stats, [part for each in ranks for part in each["parts"]])


def test_processes_learn_what_one_would_from_each_sample_alone(together: Path, tiny_model: Path) -> None:
    ranks = of_ranks(together, "padded")
    assert len(ranks) == WORLD_SIZE
    parts = [part for each in ranks for part in each["parts"]]
    steps = [[part for part in parts if part.step == step] for step in range(3)]
    # A Trainer's loss is the mean over all predictions of a step.
    whole = [
        Part(step, [each for p in found for each in p.target], [each for p in found for each in p.rehearsed])
        for step, found in enumerate(steps)
    ]
    model = precise(AutoModelForCausalLM.from_pretrained(tiny_model))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    learn(model, [whole], torch.optim.SGD(model.parameters(), lr=LEARNS["learning_rate"]), num_parts=1)
    for name, expected in model.state_dict().items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
        torch.testing.assert_close(ranks[0]["weights"][name].double(), expected, rtol=0, atol=1e-5)
    assert any((each - before[name]).abs().max() > 1e-3 for name, each in model.state_dict().items())
