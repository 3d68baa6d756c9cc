"""Going back, changing course and closing, over HTTP."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.gateway.worlds import (
    all_of,
    ask,
    assert_problem,
    batch_of,
    client_on,
    create_run,
    losses_of,
    report,
    state_of,
)


def rewind(client: TestClient, step: int) -> Any:
    return client.post("/v1/runs/tune/rewind", json={"step": step})


def change(client: TestClient, **changes: Any) -> Any:
    return client.patch("/v1/runs/tune", json=changes)


def test_a_rewound_run_plans_the_same_steps_anew(running: TestClient) -> None:
    before = batch_of(running, 0, 10)
    assert rewind(running, 3).json()["next_step"] == 4
    after = batch_of(running, 0, 10)
    assert after.sample_id.tolist() == before.sample_id.tolist()
    assert (before.header.attempt, after.header.attempt) == (1, 2)


def test_a_rewind_is_to_the_state_after_the_step(running: TestClient) -> None:
    report(running, losses_of(batch_of(running, 0, 4)))
    before = state_of(running)
    report(running, losses_of(batch_of(running, 4, 6)))
    assert state_of(running) != before
    rewind(running, 3)
    assert state_of(running) == before
    assert [each.get("attempt", 2) for each in all_of(running)] == [2, 2, 2]


def test_a_report_from_before_a_rewind_is_stale(running: TestClient) -> None:
    rows = losses_of(batch_of(running, 0, 2))
    rows["attempt"] = 1
    rewind(running, 1)
    assert report(running, rows).json() == {"accepted": 0, "duplicate": 0, "rejected": len(rows)}
    rows["attempt"] = 2
    assert report(running, rows).json()["accepted"] == len(rows)


def test_a_rewind_outlives_the_process(root: Path) -> None:
    with client_on(root) as client:
        create_run(client)
        batch_of(client, 0, 8)
        rewind(client, 2)
        before = all_of(client)
    with client_on(root) as client:
        assert all_of(client) == before


@pytest.mark.parametrize("step", [-2, 5, 10**6, "last", None])
def test_a_rewind_to_no_step_changes_nothing(running: TestClient, step: Any) -> None:
    batch_of(running, 0, 5)
    before = all_of(running)
    assert_problem(rewind(running, step), 422)
    assert all_of(running) == before


def test_a_change_takes_effect_at_the_first_unplanned_step(running: TestClient) -> None:
    counts = [step.num_rehearsed for step in batch_of(running, 0, 5).header.steps]
    info = change(running, injection_ratio="0.5", floor=0.4).json()
    assert (info["config"]["injection_ratio"], info["config"]["floor"], info["policy_version"]) == ("0.5", 0.4, 2)
    batch = batch_of(running, 0, 10)
    assert [step.num_rehearsed for step in batch.header.steps] == [*counts, 4, 4, 4, 4, 4]
    assert [step.policy_version for step in batch.header.steps] == [1] * 5 + [2] * 5
    assert [step.rehearsed_before for step in batch.header.steps][-1] == sum(counts) + 16


def test_a_change_of_nothing_is_no_new_version(running: TestClient) -> None:
    assert change(running).json()["policy_version"] == 1
    assert change(running, floor=0.1).json()["policy_version"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 3},
        {"global_batch_size": 16},
        {"floor": 2},
        {"injection_ratio": "1.5"},
        {"injection_ratio": "many"},
        {"policy": "best"},
    ],
)
def test_a_change_that_cannot_be_made_changes_nothing(running: TestClient, changes: dict[str, Any]) -> None:
    before = all_of(running)
    assert_problem(change(running, **changes), 422)
    assert all_of(running) == before


def test_a_closed_run_plans_no_further_step(running: TestClient) -> None:
    batch = batch_of(running, 0, 3)
    assert running.post("/v1/runs/tune/close", json={}).json()["closed"] is True
    assert batch_of(running, 0, 3).sample_id.tolist() == batch.sample_id.tolist()
    assert report(running, losses_of(batch)).json()["accepted"] == len(batch)
    assert_problem(ask(running, step=3), 409, "run-closed")
    rewind(running, 1)
    assert len(batch_of(running, 3, 1).header.steps) == 1
