"""The steps of a rank as a dataset, in the process of the loop and in forked and spawned workers."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoModelForCausalLM

from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer.batches.added import Added
from replay_trainer.batches.rows import MixedInputs
from replay_trainer.client import ReplayClient
from replay_trainer.dataset import RehearsalDataset
from replay_trainer.errors import InvalidTraining
from replay_trainer.plain import Rehearsal, RehearsalLoop
from tests.trainer.some_rows import NUM_ROWS, Rows

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata with torch 2.13

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "data-loaders.md"
NUM_STEPS = 7
SIZE = 4
SETTINGS = {"global_batch_size": SIZE, "injection_ratio": "0.3", "policy": "uniform"}
WORKERS: dict[str, dict[str, Any]] = {
    "no workers": {},
    "forked": {"num_workers": 2, "multiprocessing_context": "fork"},
    "spawned": {"num_workers": 2, "multiprocessing_context": "spawn"},
}


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    with replay_service(seq_len=6, serve=True) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: ServiceUnderTest) -> Iterator[ReplayClient]:
    with ReplayClient(service.url) as found:
        yield found


def a_dataset(client: ReplayClient, run: str, mode: str = "replace", **options: Any) -> RehearsalDataset:
    settings = {"feedback": options.pop("feedback", {"mode": "latest"})}
    client.ensure_run(run, "pretraining", {**SETTINGS, **settings, "injection_mode": mode})
    return RehearsalDataset(Rehearsal(client, run), Rows(), **{"num_steps": NUM_STEPS, **options})


def rows_of(batch: Added) -> list[int]:
    """The rows of the dataset in a micro-batch."""
    return [int(each) - 1 for each in batch.target_labels[:, 0]]


def content(step: list[Added]) -> list[tuple[int, list[int], list[int]]]:
    """The step, rows and rehearsed samples of each micro-batch."""
    return [(b.rehearsed.only_step.step, rows_of(b), b.rehearsed.sample_id.tolist()) for b in step]


def trained(loop: RehearsalLoop, loader: Any, num_steps: int = NUM_STEPS) -> list[Any]:
    """What some steps hold, each of which is reported."""
    found = []
    for parts in islice(loader, num_steps):
        for batch in loop.take(parts):
            assert isinstance(batch, MixedInputs)
            shape = (*batch.inputs["input_ids"].shape, 300)
            loop.report(batch, batch.losses(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
        found.append(content(parts))
    return found


@pytest.mark.parametrize(
    ("workers", "mode"),
    [
        ("no workers", "add"),
        ("no workers", "replace"),
        ("forked", "add"),
        ("forked", "replace"),
        ("spawned", "replace"),
    ],
)
def test_a_step_has_the_rows_and_samples_of_its_plan_wherever_it_is_made(
    client: ReplayClient, workers: str, mode: str
) -> None:
    run = f"made-{workers.replace(' ', '-')}-{mode}"
    dataset = a_dataset(client, run, mode, num_parts=2)
    with dataset.open() as loop:
        steps = trained(loop, DataLoader(dataset, batch_size=None, **WORKERS[workers]))
        assert loop.trained.num_target_rows + (mode == "replace") * loop.trained.num_rehearsed_rows == NUM_STEPS * SIZE
    planned = [client.batch(run, step).sample_id.tolist() for step in range(NUM_STEPS)]
    assert [[part[0] for part in step] for step in steps] == [[step] * 2 for step in range(NUM_STEPS)]
    assert [list(chain.from_iterable(part[2] for part in step)) for step in steps] == planned
    alone = list(a_dataset(client, run, mode, num_parts=2))
    assert steps == [content(parts) for parts in alone]
    stats = client.stats(run)
    assert (stats["state"], stats["num_reported"], stats["num_pending"]) == ("finished", sum(map(len, planned)), 0)


def test_no_row_is_left_out_for_good_and_epochs_are_shuffled(client: ReplayClient) -> None:
    steps = [content(parts) for parts in a_dataset(client, "epochs", num_steps=20)]
    assert all(len(rows) + len(samples) == SIZE for ((_, rows, samples),) in steps)
    rows = list(chain.from_iterable(rows for ((_, rows, _),) in steps))
    epochs = [rows[first : first + NUM_ROWS] for first in range(0, 50, NUM_ROWS)]
    assert all(Counter(epoch) == Counter(range(NUM_ROWS)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_ranks_share_the_rows_of_a_step(client: ReplayClient) -> None:
    alone = [content(parts)[0] for parts in a_dataset(client, "shared")]
    ranks = [a_dataset(client, "shared", rank=rank, world_size=2) for rank in range(2)]
    for (step, rows, samples), *parts in zip(alone, *ranks, strict=True):
        both = [content(part)[0] for part in parts]
        assert [each[0] for each in both] == [step, step]
        assert both[0][1] + both[1][1] == rows
        assert sorted(both[0][2] + both[1][2]) == sorted(samples)


@pytest.mark.parametrize("workers", ["no workers", "forked"])
def test_a_stateful_loader_resumes_in_the_middle_with_the_same_rows(client: ReplayClient, workers: str) -> None:
    run, options = f"resumed-{workers.replace(' ', '-')}", {"batch_size": None, **WORKERS[workers]}
    fenced = {"mode": "fenced", "lag": 6}
    dataset = a_dataset(client, run, feedback=fenced)
    loop, loader = dataset.open(), StatefulDataLoader(dataset, **options)
    steps = iter(loader)
    before = trained(loop, steps, 3)
    state, of_loop = loader.state_dict(), loop.state_dict()
    after = trained(loop, steps)
    loop.close()

    dataset = a_dataset(client, run, feedback=fenced)
    with dataset.open() as loop:
        loop.load_state_dict(of_loop)
        loop.rewind()
        loader = StatefulDataLoader(dataset, **options)
        loader.load_state_dict(state)
        assert trained(loop, loader) == after
    assert len(before) + len(after) == NUM_STEPS
    assert client.stats(run)["num_reported"] == sum(len(part[2]) for step in before + after for part in step)


def test_the_state_of_a_loop_is_enough_whatever_the_number_of_workers(client: ReplayClient) -> None:
    dataset = a_dataset(client, "other-workers")
    loop = dataset.open()
    steps = iter(DataLoader(dataset, batch_size=None, num_workers=2))
    trained(loop, steps, 4)
    state = loop.state_dict()
    after = [content(parts) for parts in steps]
    loop.close()
    dataset = a_dataset(client, "other-workers")
    dataset.load_state_dict(state)
    with dataset.open() as loop:
        loop.load_state_dict(state)
        loop.rewind()
        assert trained(loop, DataLoader(dataset, batch_size=None, num_workers=1)) == after


def test_workers_ahead_of_a_fenced_run_wait_for_its_reports(client: ReplayClient) -> None:
    dataset = a_dataset(client, "fenced", feedback={"mode": "fenced", "lag": 1})
    with dataset.open() as loop:
        assert len(trained(loop, DataLoader(dataset, batch_size=None, num_workers=2))) == NUM_STEPS
    assert client.stats("fenced")["num_pending"] == 0


def test_workers_may_be_further_ahead_than_the_service_plans_at_once() -> None:
    with (
        replay_service(seq_len=6, settings={"max_steps_per_request": 2}, serve=True) as service,
        ReplayClient(service.url) as client,
    ):
        dataset = a_dataset(client, "narrow", num_steps=12)
        with dataset.open() as loop:
            found = trained(loop, DataLoader(dataset, batch_size=None, num_workers=2, prefetch_factor=5), 12)
        assert [step[0][0] for step in found] == list(range(12))


def test_a_loop_may_begin_the_run_anew(client: ReplayClient) -> None:
    dataset = a_dataset(client, "again", feedback={"mode": "fenced", "lag": 6})
    with dataset.open() as loop:
        first = trained(loop, dataset)
    dataset = a_dataset(client, "again", feedback={"mode": "fenced", "lag": 6})
    with pytest.raises(InvalidTraining, match="is at step 7 already"), dataset.open() as loop:
        trained(loop, dataset)
    dataset.next_step = 0
    with dataset.open(on_existing="rewind") as loop:
        assert trained(loop, dataset) == first


def test_steps_out_of_order_and_states_of_others_are_refused(client: ReplayClient) -> None:
    dataset = a_dataset(client, "refused")
    with pytest.raises(InvalidTraining, match="step 1 was asked for, but the next one is 0"), dataset.open() as loop:
        loop.take(list(dataset)[1])
    for change, message in (
        ({"run": "other"}, "run 'other'"),
        ({"version": 9}, "of version 9"),
        ({"num_workers": 2}, "one of 2 workers"),
    ):
        with pytest.raises(InvalidTraining, match=message):
            dataset.load_state_dict({"version": 1, "run": "refused", "next_step": 1, "num_workers": 0, **change})


def test_a_step_without_room_for_a_row_is_refused_also_from_a_worker(client: ReplayClient) -> None:
    client.ensure_run("full", "pretraining", {**SETTINGS, "injection_ratio": "1", "injection_mode": "replace"})
    dataset = RehearsalDataset(Rehearsal(client, "full"), Rows(), num_steps=2)
    with pytest.raises(InvalidTraining, match="leaves a rank 0 fine-tuning rows"):
        next(iter(dataset))
    with pytest.raises(InvalidTraining, match="leaves a rank 0 fine-tuning rows"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 4, "world_size": 5}, "rank 4 of 5 cannot share"), ({"rows": []}, "no rows to train on")],
)
def test_a_dataset_without_rows_for_each_rank_is_refused(
    client: ReplayClient, options: dict[str, Any], message: str
) -> None:
    a_dataset(client, "sizes")
    rows = options.pop("rows", Rows())
    with pytest.raises(InvalidTraining, match=message):
        RehearsalDataset(Rehearsal(client, "sizes"), rows, **options)


def test_the_documentation_shows_the_loops(tiny_model: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    vocab_size = AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size
    with replay_service(seq_len=12, vocab_size=vocab_size, serve=True) as service:
        for number, example in enumerate(examples):
            model = AutoModelForCausalLM.from_pretrained(tiny_model)
            names = {"model": model, "dataset": list(map(Rows().__getitem__, range(10))), "state": None}
            names["optimizer"] = torch.optim.SGD(model.parameters(), lr=1e-3)
            source = example.replace("http://127.0.0.1:8400", service.url).replace("my-run", f"my-run-{number}")
            exec(compile(source.replace("num_steps=1000", "num_steps=5"), str(PAGE), "exec"), names)
            stats = names["client"].stats(f"my-run-{number}")
            names["client"].close()
            assert stats["state"] == "finished" and stats["num_reported"] == stats["rows_rehearsed"] > 0
    assert len(examples) == 2
