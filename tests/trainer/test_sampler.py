"""A sampler that leaves out the rows that rehearsed ones replace."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from replay_service.testing import replay_service
from replay_trainer.client import ReplayClient
from replay_trainer.dataset import RehearsalDataset
from replay_trainer.errors import InvalidTraining
from replay_trainer.plain import Rehearsal
from replay_trainer.sampler import ReplaceSampler

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata with torch 2.13

NUM_STEPS = 8
SETTINGS = {
    "global_batch_size": 5,
    "injection_ratio": "0.3",
    "injection_mode": "replace",
    "injection_fixed": True,
    "policy": "uniform",
}
ROWS = [{"input_ids": torch.full((6,), row + 1), "labels": torch.full((6,), row + 1)} for row in range(11)]


@pytest.fixture(scope="module")
def client() -> Iterator[ReplayClient]:
    with replay_service(seq_len=6, serve=True) as service, ReplayClient(service.url) as found:
        yield found


def a_run(client: ReplayClient, run: str, **changes: Any) -> dict[str, Any]:
    client.ensure_run(run, "pretraining", {**SETTINGS, **changes})
    return client.run(run)


@pytest.mark.parametrize("world_size", [1, 2])
def test_it_deals_out_the_rows_of_the_plans_without_asking(client: ReplayClient, world_size: int) -> None:
    run = a_run(client, f"dealt-{world_size}")
    for rank in range(world_size):
        sampler = ReplaceSampler(run, len(ROWS), rank, world_size, num_steps=NUM_STEPS)
        assert len(sampler) == NUM_STEPS
        dataset = RehearsalDataset(
            Rehearsal(client, f"dealt-{world_size}"), ROWS, rank=rank, world_size=world_size, num_steps=NUM_STEPS
        )
        expected = [[int(label) - 1 for label in parts[0].target_labels[:, 0]] for parts in dataset]
        assert list(sampler) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loop_takes_its_batches_in_any_number_of_workers(client: ReplayClient, num_workers: int) -> None:
    name = f"loop-{num_workers}"
    run = a_run(client, name)
    sampler = ReplaceSampler(run, len(ROWS), num_steps=NUM_STEPS, num_parts=2)
    loader = DataLoader(ROWS, batch_sampler=sampler, num_workers=num_workers)  # type: ignore[arg-type]
    with Rehearsal(client, name).open(num_steps=NUM_STEPS, injection_mode="replace") as loop:
        for number, inputs in enumerate(loader):
            loop.mix(number // 2, inputs, part=number % 2, num_parts=2)
        trained = loop.trained
    assert trained.num_target_rows + trained.num_rehearsed_rows == NUM_STEPS * 5
    assert trained.num_rehearsed_rows == client.stats(name)["rows_rehearsed"] == 12


def test_it_begins_where_it_is_told_to_and_a_stateful_loader_resumes_it(client: ReplayClient) -> None:
    sampler = ReplaceSampler(a_run(client, "resumed"), len(ROWS), num_steps=NUM_STEPS)
    whole = list(sampler)
    loader = StatefulDataLoader(ROWS, batch_sampler=sampler, num_workers=2)  # type: ignore[arg-type]
    rows = [(each["labels"][:, 0] - 1).tolist() for each in islice(loader, 3)]
    again = StatefulDataLoader(ROWS, batch_sampler=sampler, num_workers=2)  # type: ignore[arg-type]
    again.load_state_dict(loader.state_dict())
    assert rows + [(each["labels"][:, 0] - 1).tolist() for each in again] == whole
    sampler.first_step = 5
    assert list(sampler) == whole[5:] and len(sampler) == 3


def test_batches_that_leave_no_room_are_refused(client: ReplayClient) -> None:
    a_run(client, "no-room")
    with (
        Rehearsal(client, "no-room").open(num_steps=2, injection_mode="replace") as loop,
        pytest.raises(InvalidTraining, match="step 0 has 6 rows on this rank, rehearsed ones included"),
    ):
        loop.mix(0, {name: torch.ones(5, 6).long() for name in ("input_ids", "labels")})
    a_run(client, "adding", injection_mode="add")
    with pytest.raises(InvalidTraining, match="make a run with injection_mode 'replace'"):
        Rehearsal(client, "adding").open(injection_mode="replace")


@pytest.mark.parametrize(
    ("run", "changes", "options", "message"),
    [
        ("adds", {"injection_mode": "add"}, {}, "injection_mode 'add' and injection_fixed true"),
        ("not-fixed", {"injection_fixed": False}, {}, "injection_fixed false, but a sampler deals out"),
        ("all-rehearsed", {"injection_ratio": "0.9"}, {}, "leaves a rank 0 fine-tuning rows"),
        (
            "many-parts",
            {},
            {"num_parts": 4},
            "leaves a rank 3 fine-tuning rows beside the rehearsed ones, for 4 micro-batches",
        ),
        ("no-such-rank", {}, {"rank": 2, "world_size": 2}, "rank 2 of 2 cannot share"),
    ],
)
def test_what_it_cannot_deal_out_is_refused_at_once(
    client: ReplayClient, run: str, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    described = a_run(client, run, **changes)
    with pytest.raises(InvalidTraining, match=message):
        ReplaceSampler(described, len(ROWS), **options)
