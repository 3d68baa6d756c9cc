"""What the ranks of a job have trained on, over HTTP."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.gateway.worlds import all_of, assert_problem, batch_of

PATH = "/v1/runs/tune/trained"
REPORT: dict[str, Any] = {
    "rank": 0,
    "first_step": 0,
    "next_step": 4,
    "num_rows": 40,
    "num_rehearsed_rows": 10,
    "num_tokens": 4000,
    "num_rehearsed_tokens": 900,
}


def stats(client: TestClient) -> dict[str, Any]:
    content: dict[str, Any] = client.get("/v1/runs/tune/stats").json()
    return content


def test_the_achieved_ratio_is_that_of_the_rows_that_were_trained_on(running: TestClient) -> None:
    batch_of(running, 0, 4)
    assert (stats(running)["trained"], stats(running)["achieved_ratio"]) == (None, None)
    assert running.post(PATH, json=REPORT).json() == {"counted": True}
    assert running.post(PATH, json={**REPORT, "rank": 1, "next_step": 3, "num_rehearsed_rows": 30}).status_code == 200
    found = stats(running)
    assert found["achieved_ratio"] == 40 / 80
    assert found["planned_ratio"] == 9 / 32
    assert found["trained"] == {
        "next_step": 3,
        "num_rows": 80,
        "num_rehearsed_rows": 40,
        "num_tokens": 8000,
        "num_rehearsed_tokens": 1800,
    }


def test_a_report_that_is_repeated_counts_once(running: TestClient) -> None:
    batch_of(running, 0, 4)
    assert [running.post(PATH, json=REPORT).json()["counted"] for _ in range(2)] == [True, False]
    assert stats(running)["trained"]["num_rows"] == 40
    assert running.post(PATH, json={**REPORT, "first_step": 4, "next_step": 5}).json() == {"counted": True}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"next_step": 0}, "next_step must be greater than first_step"),
        ({"num_rehearsed_rows": 41}, "there are no more of them"),
        ({"num_rehearsed_tokens": 4001}, "there are no more of them"),
        ({"num_rows": -1}, "greater than or equal to 0"),
        ({"rank": "0"}, "valid integer"),
        ({"num_examples": 3}, "not permitted"),
    ],
)
def test_a_report_that_cannot_be_right_is_refused_and_changes_nothing(
    running: TestClient, change: dict[str, Any], said: str
) -> None:
    before = all_of(running)
    problem = assert_problem(running.post(PATH, json={**REPORT, **change}), 422, "invalid-request")
    assert said in str(problem)
    assert all_of(running) == before


def test_an_unknown_run_is_named(running: TestClient) -> None:
    assert_problem(running.post("/v1/runs/other/trained", json=REPORT), 404, "unknown-run")
