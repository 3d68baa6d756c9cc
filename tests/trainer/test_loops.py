"""The loops of accelerate and Lightning: what they train on, what they report, and what stays as it was."""

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer.client import ReplayClient
from replay_trainer.errors import InvalidTraining
from tests.trainer.alone import learn, mean_loss, mean_losses, num_predictions, precise
from tests.trainer.loops import (
    LEARNING_RATE,
    LOOPS,
    NUM_EPOCHS,
    NUM_PARTS,
    NUM_ROWS,
    PARTS_OF_EPOCH,
    SETTINGS,
    STEPS_OF_EPOCH,
    Seen,
    model_in,
    optimizer_of,
    rows,
)

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


def trained_in(stats: dict[str, Any]) -> tuple[int, ...]:
    """Rehearsed rows, all rows, rehearsed tokens and all tokens, as the service counts them."""
    return tuple(
        stats["trained"][name] for name in ("num_rehearsed_rows", "num_rows", "num_rehearsed_tokens", "num_tokens")
    )


def counts_of(ranks: list[Seen]) -> tuple[int, ...]:
    """The same of what the model was given."""
    parts = [part for rank in ranks for part in rank.parts]
    rehearsed = [each for part in parts for each in part.rehearsed]
    samples = [each for part in parts for each in part.samples]
    return len(rehearsed), len(samples), num_predictions(rehearsed), num_predictions(samples)


@pytest.mark.parametrize("apart", [False, True], ids=["one pass", "two passes"])
def test_the_loss_is_the_mean_of_all_predictions_each_sample_alone(
    client: ReplayClient, tiny_model: Path, stack: str, apart: bool
) -> None:
    run = a_run(client, f"{stack}-alone-{int(apart)}")
    seen, model = LOOPS[stack](client, run, tiny_model, learning_rate=0.0, apart=apart)
    assert len(seen.losses) == NUM_EPOCHS * NUM_ROWS // 2
    assert seen.losses == pytest.approx([mean_loss(model, part.samples) for part in seen.parts], abs=1e-5)
    for step, figures in enumerate(seen.figures):
        expected = mean_losses(model, [part for part in seen.parts if part.step == step])
        assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-5)


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
    # Of whole steps 0.4 is rehearsed; the two that end an epoch have two of the loader's rows less.
    assert num_rehearsed / (num_rehearsed + NUM_STEPS * 4) == 0.4
    assert last["num_target_rows"] == NUM_EPOCHS * NUM_ROWS
    assert last["rehearsed_share"] == num_rehearsed / (num_rehearsed + NUM_EPOCHS * NUM_ROWS) == stats["achieved_ratio"]
    assert last["num_rehearsed_tokens"] == num_predictions([each for part in seen.parts for each in part.rehearsed])
    assert last["num_target_tokens"] == num_predictions([each for part in seen.parts for each in part.target])
    assert trained_in(stats) == counts_of([seen])
    assert {"target_loss", "rehearsed_loss", "rows_due", "late_steps"} <= last.keys()


def test_without_rehearsal_it_trains_as_the_loop_does_alone(client: ReplayClient, tiny_model: Path, stack: str) -> None:
    _, found = LOOPS[stack](client, a_run(client, f"{stack}-nothing", injection_ratio="0"), tiny_model)
    expected: Any = model_in(tiny_model)
    optimizer = optimizer_of(expected, LEARNING_RATE)
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


@pytest.mark.parametrize("save_after", [NUM_PARTS, PARTS_OF_EPOCH], ids=["within an epoch", "after an epoch"])
def test_training_that_resumes_goes_on_bitwise(
    client: ReplayClient, tiny_model: Path, tmp_path: Path, stack: str, save_after: int
) -> None:
    run, place = a_run(client, f"{stack}-resumed-{save_after}"), tmp_path / "checkpoint"
    whole, expected = LOOPS[stack](client, run, tiny_model, save_after=save_after, save_to=place)
    resumed, found = LOOPS[stack](client, run, tiny_model, save_after=save_after, load_from=place)
    first_step = -(-save_after // NUM_PARTS)
    assert resumed.samples == {step: whole.samples[step] for step in range(first_step, NUM_STEPS)}
    assert resumed.losses == whole.losses[save_after:]
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert client.stats(run)["num_reported"] == sum(map(len, whole.samples.values()))


def test_a_checkpoint_within_a_step_is_refused_where_it_is_written(
    client: ReplayClient, tiny_model: Path, tmp_path: Path, stack: str
) -> None:
    run, place = a_run(client, f"{stack}-within"), tmp_path / "checkpoint"
    with pytest.raises(InvalidTraining, match="after micro-batch 1 of 2 of step 1, from which nothing can go on"):
        LOOPS[stack](client, run, tiny_model, save_after=3, save_to=place)


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
        for way in ("mixed", "apart"):
            a_run(client, f"{name}-{way}")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD_SIZE)]
    module = ["-m", "tests.trainer.loops", service.url, str(tiny_model), str(folder)]
    subprocess.run([sys.executable, *command, *module], check=True, cwd=ROOT, timeout=200)
    return folder


@pytest.mark.parametrize("way", ["mixed", "apart"])
def test_two_processes_learn_what_one_would_from_each_sample_alone(
    client: ReplayClient, tiny_model: Path, together: Path, stack: str, way: str
) -> None:
    run = f"{stack}-{way}"
    found = [torch.load(together / f"{run}-{rank}.pt", weights_only=False) for rank in range(WORLD_SIZE)]
    ranks = [Seen(**seen) for seen, _ in found]
    for step in range(NUM_STEPS):
        planned = client.batch(run, step, rank=0, world_size=1).sample_id.tolist()
        assert sorted(chain.from_iterable(rank.samples[step] for rank in ranks)) == sorted(planned)
    stats = client.stats(run)
    assert (stats["num_pending"], stats["num_reported"]) == (0, stats["rows_rehearsed"])
    assert trained_in(stats) == counts_of(ranks)
    model = precise(model_in(tiny_model))
    figures = learn(model, [seen.parts for seen in ranks], optimizer_of(model, LEARNING_RATE), NUM_PARTS)
    for ours, expected in zip(ranks[0].figures, figures, strict=True):
        assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    for name, expected_weights in model.state_dict().items():
        assert torch.equal(found[0][1][name], found[1][1][name])
        torch.testing.assert_close(found[0][1][name].double(), expected_weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("apart", [False, True], ids=["one pass", "two passes"])
def test_the_documentation_shows_the_loop(
    service: ServiceUnderTest,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stack: str,
    apart: bool,
) -> None:
    monkeypatch.chdir(tmp_path)  # where Lightning puts checkpoints
    page = ROOT / "docs" / "how-to" / f"{stack}.md"
    example, two_passes = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    if apart:
        (shown,) = re.finditer(r"^( *)batch = .*?rehearsing\.loss\([^\n]*\n", example, re.DOTALL | re.MULTILINE)
        example = example.replace(shown[0], indent(two_passes, shown[1]))
    names: dict[str, Any] = {
        "checkpoint": None,
        "model": AutoModelForCausalLM.from_pretrained(tiny_model),
        "dataset": [row for row in rows() if len(row["labels"])][:8],
    }
    run = f"my-{stack}-run-{int(apart)}"
    source = example.replace("http://127.0.0.1:8400", service.url).replace("my-run", run)
    exec(compile(source, str(page), "exec"), names)
    names["client"].close()
    with service.client() as client:
        stats = client.stats(run)
    assert stats["state"] == "finished" and stats["num_reported"] == stats["rows_rehearsed"] > 0
