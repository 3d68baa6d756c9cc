"""trl's SFTTrainer with rehearsal: the loss of a step is that of its samples, each alone through the model."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer.client import ReplayClient
from tests.trainer.trl_loops import KINDS, SEQ_LEN, TOGETHER, reference, trainer_of

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
    trainer = trainer_of(client, kind, tiny_model, tmp_path)
    trainer.train()
    found = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    steps = zip(trainer.target.values(), trainer.rehearsed.values(), strict=True)
    expected = [reference(model, target + rehearsed) for target, rehearsed in steps]
    assert len(found) == 3
    assert found == pytest.approx(expected, abs=1e-5)
    stats = client.stats(trainer.rehearsal.run)
    assert stats["num_reported"] == stats["rows_rehearsed"] == 8 and stats["num_pending"] == 0


def test_adapters_alone_learn_from_rehearsed_rows(client: ReplayClient, tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_of(client, "peft", tiny_model, tmp_path, learning_rate=1e-2)
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
    return [json.loads((folder / f"{kind}-{rank}.json").read_text()) for rank in range(WORLD_SIZE)]


def pairs(samples: list[Any]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.tensor(ids), torch.tensor(labels)) for ids, labels in samples]


def test_the_loss_of_a_step_is_that_of_the_samples_of_all_processes(together: Path, tiny_model: Path) -> None:
    ranks = of_ranks(together, "packed")
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    steps = zip(*(each[kind] for each in ranks for kind in ("target", "rehearsed")), strict=True)
    expected = [reference(model, [pair for part in step for pair in pairs(part)]) for step in steps]
    assert len(expected) == 3
    assert ranks[0]["losses"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", TOGETHER)
def test_processes_train_on_the_ratio_that_was_asked_for(client: ReplayClient, together: Path, kind: str) -> None:
    ranks = of_ranks(together, kind)
    num_rows = sum(each["num_rows"] for each in ranks)
    rehearsed = [sum(map(len, each["rehearsed"])) for each in ranks]
    assert num_rows == 12
    assert sum(rehearsed) / (sum(rehearsed) + num_rows) == 0.4
    assert max(rehearsed) - min(rehearsed) <= 1
    stats = client.stats(f"trl-{kind}-2")
    assert (stats["num_reported"], stats["rows_rehearsed"], stats["num_pending"]) == (8, 8, 0)
    assert stats["state"] == "finished"


def test_processes_keep_the_same_weights_and_learn(together: Path, tiny_model: Path) -> None:
    weights = [each["weights"] for each in of_ranks(together, "padded")]
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert weights[0] == weights[1] != float(sum(each.double().abs().sum() for each in model.parameters()))
