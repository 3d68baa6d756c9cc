"""Curves of forgetting over HTTP, and runs side by side."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from replay_service.gateway.curves import buckets
from tests.gateway.worlds import assert_problem, batch_of, bearer, client_on, create_run, losses_of, make_token, report

SETTINGS = {"injection_ratio": "0.25", "half_life_steps": 20, "policy": "uniform"}
LISTS = ("step", "nats", "low", "high", "least_nats", "most_nats")


def train(client: TestClient, first: int, num_steps: int) -> None:
    batch = batch_of(client, first, num_steps)
    for step in range(first, first + num_steps):
        rows = losses_of(batch)[batch.step == step]
        rows["loss_nats"] = (
            batch.base_loss[batch.step == step] + 0.01 * step + 0.1 * (batch.stratum[batch.step == step])
        )
        report(client, rows).raise_for_status()


@pytest.fixture
def trained(client: TestClient) -> TestClient:
    """A client whose service has the run `tune`, with reports of 40 steps."""
    create_run(client, **SETTINGS)
    train(client, 0, 40)
    return client


def curves(client: TestClient, **query: Any) -> dict[str, Any]:
    response = client.get("/v1/runs/tune/forgetting", params=query)
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


def test_a_curve_ends_with_what_the_statistics_say(trained: TestClient) -> None:
    found, stats = curves(trained), trained.get("/v1/runs/tune/stats").json()
    assert (found["is_whole"], found["as_of"], found["attempt"], found["domains"]) == (True, stats["as_of"], 1, [])
    curve = found["corpus"]
    assert {len(curve[name]) for name in LISTS} == {len(curve["step"])} != {0}
    assert curve["step"] == sorted(set(curve["step"])) and curve["step"][-1] == 39
    for name in ("nats", "low", "high"):
        assert curve[name][-1] == stats["forgetting"][name]
    assert curve["nats"][0] is None and curve["least_nats"] == curve["nats"] == curve["most_nats"]


def test_domains_have_curves_if_they_are_asked_for(trained: TestClient) -> None:
    every, stats = curves(trained, by="domain"), trained.get("/v1/runs/tune/stats").json()
    assert [each["name"] for each in every["domains"]] == ["en", "fr"]
    for each in every["domains"]:
        assert each["nats"][-1] == stats["forgetting_by_domain"][each["name"]]["nats"]
    assert curves(trained, domain="fr")["domains"] == every["domains"][1:]


def test_nothing_hides_within_a_bucket(trained: TestClient) -> None:
    fine, coarse = curves(trained)["corpus"], curves(trained, points=2)["corpus"]
    assert len(coarse["step"]) == 2 < len(fine["step"]) and coarse["step"][-1] == fine["step"][-1]
    known = [each for each in fine["nats"] if each is not None]
    assert min(each for each in coarse["least_nats"] if each is not None) == min(known)
    assert max(each for each in coarse["most_nats"] if each is not None) == max(known)


def test_a_stretch_of_steps_is_cut_out(trained: TestClient) -> None:
    fine = curves(trained)["corpus"]
    part = curves(trained, **{"from": 10, "to": 30})["corpus"]
    chosen = [i for i, step in enumerate(fine["step"]) if 10 <= step <= 30]
    assert part == {name: [fine[name][i] for i in chosen] for name in LISTS} and chosen
    beyond = curves(trained, **{"from": 10**18, "to": 2**63 - 1})
    assert beyond["corpus"] == {name: [] for name in LISTS}


def test_a_run_without_reports_has_an_empty_curve(running: TestClient) -> None:
    assert curves(running, by="domain")["corpus"] == {name: [] for name in LISTS}


@pytest.mark.parametrize(
    "query",
    [
        {"from": -1},
        {"to": 2**63},
        {"from": 9, "to": 8},
        {"points": 1},
        {"points": 2001},
        {"points": -5},
        {"by": "stratum"},
        {"domain": "x"},
        {"domain": "\u202e<svg onload=alert(1)>" * 50},
        {"first": 3},
        {"from": "1e3"},
    ],
)
def test_a_curve_that_makes_no_sense_is_refused(trained: TestClient, query: dict[str, Any]) -> None:
    assert_problem(trained.get("/v1/runs/tune/forgetting", params=query), 422, "invalid-request")


def test_a_rewind_takes_the_curve_back(trained: TestClient) -> None:
    before = curves(trained)["corpus"]
    trained.post("/v1/runs/tune/rewind", json={"step": 20}).raise_for_status()
    after = curves(trained)["corpus"]
    num = sum(step <= 20 for step in before["step"])
    assert max(after["step"]) <= 20 and len(after["step"]) in (num, num + 1)


def compare(client: TestClient, runs: str, **query: Any) -> dict[str, Any]:
    response = client.get("/v1/compare", params={"runs": runs, **query})
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


def test_runs_are_compared_by_step(trained: TestClient) -> None:
    create_run(trained, run="other")
    counts = {"num_rows": 80, "num_rehearsed_rows": 16, "num_tokens": 80, "num_rehearsed_tokens": 16}
    steps = {"rank": 0, "first_step": 0, "next_step": 40}
    trained.post("/v1/runs/tune/trained", json=steps | counts).raise_for_status()
    one, other = compare(trained, "tune, other,tune")["runs"]
    assert (one["run"], other["run"], other["step"]) == ("tune", "other", [])
    curve = curves(trained)["corpus"]
    assert {name: one[name] for name in LISTS} == curve
    assert one["injection_ratio"] == [0.25] * len(curve["step"])
    assert one["achieved_ratio"][0] is None and one["achieved_ratio"][-1] == 0.2
    assert len(compare(trained, "tune", points=3)["runs"][0]["achieved_ratio"]) == 3


@pytest.mark.parametrize(
    ("runs", "status", "slug"),
    [
        ("", 404, "unknown-run"),
        ("tune,nobody", 404, "unknown-run"),
        ("tune,", 404, "unknown-run"),
        ("tune,../../etc", 404, "unknown-run"),
        (",".join(f"run-{i}" for i in range(9)), 422, "invalid-request"),
        ("x" * 1001, 422, "invalid-request"),
    ],
)
def test_what_cannot_be_compared_is_refused(trained: TestClient, runs: str, status: int, slug: str) -> None:
    assert_problem(trained.get("/v1/compare", params={"runs": runs}), status, slug)


def test_a_comparison_asks_for_a_token_of_every_run(root: Path) -> None:
    admin = bearer(make_token(root, "admin"))
    mine = bearer(make_token(root, "read", "reader", runs=("mine",)))
    with client_on(root) as client:
        for run in ("mine", "other"):
            body = {"run": run, "corpus": "wiki", "global_batch_size": 8, "injection_ratio": "0.3"}
            assert client.post("/v1/runs", json=body, headers=admin).status_code == 201
        assert client.get("/v1/compare?runs=mine", headers=mine).status_code == 200
        assert_problem(client.get("/v1/compare?runs=mine,other", headers=mine), 403, "run-forbidden")
        assert_problem(client.get("/v1/compare?runs=mine"), 401, "missing-token")


@pytest.mark.parametrize("most", [2, 3, 7, 500])
@pytest.mark.parametrize("num", [0, 1, 2, 6, 7, 8, 1000])
def test_buckets_hold_every_step_once(num: int, most: int) -> None:
    step = np.cumsum(np.random.default_rng(num).integers(1, 10**15, num))
    found = buckets(step, most)
    assert len(found) <= most and [i for begin, end in found for i in range(begin, end)] == list(range(num))
    assert all(begin < end for begin, end in found)
