"""How much is rehearsed, over HTTP: schedules, rows that are added, and the ratio that the service chooses."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from replay_service.sampling.controller import ForgettingLaw
from tests.gateway.worlds import assert_problem, batch_of, client_on, create_run, losses_of, report

LAW = {"A": 2e3, "B": 1e3, "alpha": 0.5, "beta": 0.1, "num_parameters": 1.35e8, "target_tokens": 1e6}


def stats(client: TestClient) -> dict[str, Any]:
    content: dict[str, Any] = client.get("/v1/runs/tune/stats").json()
    return content


def test_a_ratio_runs_along_its_curve(root: Path) -> None:
    with client_on(root) as client:
        create_run(client, injection_ratio="0.5", schedule={"curve": "linear", "num_steps": 10, "final_ratio": "0"})
        counts = [each.num_rehearsed for each in batch_of(client, 0, 20).header.steps]
        assert sum(counts) == sum(0.5 * 8 * (1 - step / 10) for step in range(10))
        assert counts[:2] == [4, 3]
        assert counts[10:] == [0] * 10
        assert stats(client)["injection_ratio"] == 0.0
        assert client.get("/v1/runs/tune").json()["config"]["schedule"]["curve"] == "linear"


def test_a_schedule_can_be_changed_from_the_first_unplanned_step_on(root: Path) -> None:
    with client_on(root) as client:
        create_run(client, injection_ratio="0.5")
        batch_of(client, 0, 4)
        changed = client.patch("/v1/runs/tune", json={"schedule": {"curve": "steps", "points": [[6, 0.25]]}})
        assert changed.status_code == 200, changed.text
        assert [each.num_rehearsed for each in batch_of(client, 0, 8).header.steps] == [4, 4, 4, 4, 4, 4, 2, 2]


def test_rows_can_be_added_instead_of_replaced(root: Path) -> None:
    with client_on(root) as client:
        create_run(client, injection_ratio="0.2", injection_mode="add")
        assert len(batch_of(client, 0, 10)) == 20
        assert stats(client)["planned_ratio"] == 20 / 100
        assert_problem(client.patch("/v1/runs/tune", json={"injection_ratio": "1"}), 422, "invalid-run")


def test_a_promise_of_fixed_injection_is_kept(root: Path) -> None:
    with client_on(root) as client:
        assert create_run(client, injection_fixed=True).json()["config"]["injection_fixed"] is True
        for change in ({"injection_ratio": "0.5"}, {"schedule": {"curve": "constant"}}, {"budget": {"nats": 0.1}}):
            problem = assert_problem(client.patch("/v1/runs/tune", json=change), 422, "invalid-run")
            assert f"{next(iter(change))} cannot be changed" in problem["detail"]
            assert "create a run without it" in problem["detail"]
        assert_problem(client.patch("/v1/runs/tune", json={"injection_mode": "add"}), 422, "invalid-request")
        assert_problem(client.patch("/v1/runs/tune", json={"injection_fixed": False}), 422, "invalid-request")
        assert client.patch("/v1/runs/tune", json={"floor": 0.5}).status_code == 200
        assert_problem(create_run(client), 409, "run-exists")
    with client_on(root) as client:
        assert client.get("/v1/runs/tune").json()["config"]["injection_fixed"] is True


@pytest.mark.parametrize("value", ["true", 1, None])
def test_a_promise_is_true_or_false_and_nothing_else(root: Path, value: object) -> None:
    with client_on(root) as client:
        assert_problem(create_run(client, injection_fixed=value), 422, "invalid-request")


def test_a_run_makes_no_promise_unless_it_is_told_to(root: Path) -> None:
    with client_on(root) as client:
        assert create_run(client).json()["config"]["injection_fixed"] is False
        assert client.patch("/v1/runs/tune", json={"injection_ratio": "0.5"}).status_code == 200


def test_the_service_holds_a_budget_of_forgetting(root: Path) -> None:
    budget = {"nats": 0.05, "first_ratio": "0.2", "most_ratio": 0.5, "every_steps": 2}
    with client_on(root) as client:
        create_run(client, injection_ratio="auto", budget=budget)
        for step in range(12):
            batch = batch_of(client, step)
            rows = losses_of(batch)
            rows["loss_nats"] = batch.base_loss + 1.0
            assert report(client, rows).json()["accepted"] == len(batch)
        found = stats(client)
        assert found["forgetting"]["nats"] == pytest.approx(1.0, abs=1e-5)
        assert found["forgetting"]["low"] > 0.9
        assert list(found["forgetting_by_domain"]) == ["en", "fr"]
        batch_of(client, 12, 8)
        assert 0.2 < stats(client)["injection_ratio"] <= 0.5
    with client_on(root) as client:
        again = stats(client)
        assert again["injection_ratio"] > 0.2
        assert again["next_step"] == 20


def test_the_forgetting_law_says_where_to_begin(root: Path) -> None:
    with client_on(root) as client:
        assert create_run(client, injection_ratio="auto", budget={"nats": 0.1, "law": LAW}).status_code == 201
        assert stats(client)["injection_ratio"] == pytest.approx(ForgettingLaw(**LAW).least_ratio(0.1), abs=1e-6)
        assert create_run(client, injection_ratio="auto", budget={"nats": 0.1, "law": LAW}).status_code == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"injection_ratio": "auto", "schedule": {"curve": "warmup", "num_steps": 3}},
        {"schedule": {"curve": "linear"}},
        {"schedule": {"curve": "steps", "points": [[3, "2"]]}},
        {"injection_ratio": "auto", "budget": {"first_ratio": "0.9"}},
        {"injection_ratio": "automatic"},
        {"injection_ratio": "auto", "injection_fixed": True},
        {"injection_fixed": True, "schedule": {"curve": "linear", "num_steps": 9}},
    ],
)
def test_what_makes_no_sense_is_refused(root: Path, settings: dict[str, Any]) -> None:
    with client_on(root) as client:
        assert_problem(create_run(client, **settings), 422, "invalid-run")
        assert client.get("/v1/runs").json()["runs"] == []
