"""The loops of accelerate and Lightning: what they train on, what they report, and what stays as it was."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer.client import ReplayClient
from tests.trainer.loops import LOOPS, NUM_EPOCHS, NUM_PARTS, NUM_ROWS, SETTINGS, STEPS_OF_EPOCH, Seen, rows

ROOT = Path(__file__).parents[2]
NUM_STEPS = NUM_EPOCHS * STEPS_OF_EPOCH
WORLD_SIZE = 2
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the libraries warn of what no test is about, each in its own way
    pytest.mark.parametrize("stack", sorted(LOOPS)),
]


@pytest.fixture(scope="module")
def service(tiny_model: Path) -> Iterator[ServiceUnderTest]:
    vocab_size = AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size
    with replay_service(seq_len=12, vocab_size=vocab_size, serve=True) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: ServiceUnderTest) -> Iterator[ReplayClient]:
    with service.client() as found:
        yield found


def a_run(client: ReplayClient, run: str, **changes: Any) -> str:
    client.ensure_run(run, "pretraining", {**SETTINGS, **changes})
    return run


def test_the_loss_is_the_mean_of_all_predictions_each_sample_alone(
    client: ReplayClient, tiny_model: Path, stack: str
) -> None:
    seen, model = LOOPS[stack](client, a_run(client, f"{stack}-alone"), tiny_model, learning_rate=0.0)
    assert len(seen.losses) == NUM_EPOCHS * NUM_ROWS // 2
    for batch, loss in zip(seen.batches, seen.losses, strict=True):
        nats, num = torch.zeros(()), 0
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            length = max(i for i, label in enumerate(labels) if label != -100) + 1
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[:length]])).logits[0]
            counted = torch.tensor(labels[1:length])
            nats += torch.nn.functional.cross_entropy(logits[:-1], counted, reduction="sum")
            num += int((counted != -100).sum())
        assert loss == pytest.approx(float(nats) / num, abs=1e-5)


def test_each_step_has_its_rehearsed_rows_also_where_an_epoch_ends_early(
    client: ReplayClient, tiny_model: Path, stack: str
) -> None:
    run = a_run(client, f"{stack}-counts")
    seen, _ = LOOPS[stack](client, run, tiny_model)
    expected = {step: client.batch(run, step, rank=0, world_size=1).sample_id.tolist() for step in range(NUM_STEPS)}
    assert seen.samples == expected
    stats = client.stats(run)
    assert (stats["state"], stats["num_pending"]) == ("finished", 0)
    num_rehearsed = sum(map(len, expected.values()))
    assert stats["num_reported"] == num_rehearsed == stats["rows_rehearsed"]
    last = seen.figures[-1]
    assert last["num_target_rows"] == NUM_EPOCHS * NUM_ROWS
    assert last["rehearsed_share"] == num_rehearsed / (num_rehearsed + NUM_EPOCHS * NUM_ROWS)
    assert {"target_loss", "rehearsed_loss", "rows_due", "late_steps"} <= last.keys()


def test_without_rehearsal_it_trains_as_the_loop_does_alone(client: ReplayClient, tiny_model: Path, stack: str) -> None:
    _, found = LOOPS[stack](client, a_run(client, f"{stack}-nothing", injection_ratio="0"), tiny_model)
    torch.manual_seed(0)
    expected = AutoModelForCausalLM.from_pretrained(tiny_model)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2)
    data = rows()
    for _ in range(NUM_EPOCHS):
        for first in range(0, NUM_ROWS, 4):
            for start in range(first, min(first + 4, NUM_ROWS), 2):
                batch = {name: torch.stack([row[name] for row in data[start : start + 2]]) for name in data[0]}
                (expected(**batch).loss / NUM_PARTS).backward()
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_training_that_resumes_goes_on_bitwise(
    client: ReplayClient, tiny_model: Path, tmp_path: Path, stack: str
) -> None:
    run = a_run(client, f"{stack}-resumed")
    whole, expected = LOOPS[stack](client, run, tiny_model)
    first = {"stop_after": STEPS_OF_EPOCH} if stack == "accelerate" else {"num_epochs": 1}
    place = tmp_path / "checkpoint"
    again = a_run(client, f"{stack}-resumed-2")
    LOOPS[stack](client, again, tiny_model, save_to=place, **first)
    resumed, found = LOOPS[stack](client, again, tiny_model, load_from=place)
    assert resumed.samples == {step: whole.samples[step] for step in range(STEPS_OF_EPOCH, NUM_STEPS)}
    assert resumed.losses == whole.losses[len(whole.losses) // 2 :]
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert client.stats(again)["num_reported"] == sum(map(len, whole.samples.values()))


def test_in_bf16_rehearsed_rows_are_measured(client: ReplayClient, tiny_model: Path, stack: str) -> None:
    precision = {"accelerate": "bf16", "lightning": "bf16-mixed"}[stack]
    runs = [a_run(client, f"{stack}-{name}") for name in ("bf16", "float32")]
    wide, _ = LOOPS[stack](client, runs[1], tiny_model, learning_rate=0.0)
    narrow, _ = LOOPS[stack](client, runs[0], tiny_model, learning_rate=0.0, precision=precision)
    assert narrow.losses == pytest.approx(wide.losses, abs=0.05) and narrow.losses != wide.losses
    assert client.stats(runs[0])["num_reported"] == client.stats(runs[1])["num_reported"]


@pytest.fixture(scope="module")
def together(service: ServiceUnderTest, client: ReplayClient, tiny_model: Path, tmp_path_factory: Any) -> Path:
    """Where two processes of each loop wrote what they saw."""
    folder: Path = tmp_path_factory.mktemp("together")
    for name in LOOPS:
        a_run(client, f"{name}-together")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD_SIZE)]
    module = ["-m", "tests.trainer.loops", service.url, str(tiny_model), str(folder)]
    subprocess.run([sys.executable, *command, *module], check=True, cwd=ROOT, timeout=200)
    return folder


def test_two_processes_train_on_what_one_would(
    client: ReplayClient, tiny_model: Path, together: Path, stack: str
) -> None:
    ranks = [Seen(**json.loads((together / f"{stack}-{rank}.json").read_text())) for rank in range(WORLD_SIZE)]
    alone, _ = LOOPS[stack](client, a_run(client, f"{stack}-one"), tiny_model, learning_rate=0.0)
    for step, samples in alone.samples.items():
        assert sorted(chain.from_iterable(rank.samples[str(step)] for rank in ranks)) == sorted(samples)  # type: ignore[index]
    stats = client.stats(f"{stack}-together")
    assert (stats["num_pending"], stats["num_reported"]) == (0, sum(map(len, alone.samples.values())))
    for name in ("target_loss", "rehearsed_loss"):
        assert [each[name] for each in ranks[0].figures] == pytest.approx(
            [each[name] for each in alone.figures], abs=1e-5
        )


def test_the_documentation_shows_the_loop(
    service: ServiceUnderTest, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where Lightning puts checkpoints
    page = ROOT / "docs" / "how-to" / f"{stack}.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names = {
        "model": AutoModelForCausalLM.from_pretrained(tiny_model),
        "dataset": [row for row in rows() if len(row["labels"])][:8],
    }
    source = example.replace("http://127.0.0.1:8400", service.url).replace("my-run", f"my-{stack}-run")
    exec(compile(source, str(page), "exec"), names)
    names["client"].close()
    with service.client() as client:
        stats = client.stats(f"my-{stack}-run")
    assert stats["state"] == "finished" and stats["num_reported"] == stats["rows_rehearsed"] > 0
