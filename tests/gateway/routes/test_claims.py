"""The routes by which jobs claim runs."""

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from tests.gateway.worlds import assert_problem


def claim(client: TestClient, job: str, **more: object) -> object:
    return client.post("/v1/runs/tune/claim", json={"job": job, **more})


def test_one_job_uses_a_run_at_a_time(running: TestClient) -> None:
    assert claim(running, "first").json() == {"valid_s": 60.0}
    problem = assert_problem(claim(running, "second"), 409, "run-in-use")
    assert problem["job"] == "first"
    assert claim(running, "second", take_over=True).status_code == 200
    assert_problem(claim(running, "first"), 409, "job-superseded")
    assert running.post("/v1/runs/tune/release", json={"job": "second"}).json() == {"valid_s": 0.0}
    assert claim(running, "first").status_code == 200


@pytest.mark.parametrize("body", [{}, {"job": ""}, {"job": "a" * 201}, {"job": "a", "take_over": "yes"}, {"run": "a"}])
def test_a_claim_that_cannot_be_understood_is_refused(running: TestClient, body: dict[str, object]) -> None:
    assert_problem(running.post("/v1/runs/tune/claim", json=body), 422, "invalid-request")


def test_a_run_that_is_not_there_cannot_be_claimed(running: TestClient) -> None:
    for route in ("claim", "release"):
        assert_problem(running.post(f"/v1/runs/other/{route}", json={"job": "a"}), 404, "unknown-run")


def test_a_claim_is_no_event_of_the_run_and_a_renewal_is_in_no_audit(running: TestClient) -> None:
    before = running.get("/v1/runs/tune").json()
    with capture_logs() as logs:
        for _ in range(3):
            claim(running, "first")
    assert [each["route"] for each in logs if each["event"] == "audit"] == ["/v1/runs/{run}/claim"]
    assert running.get("/v1/runs/tune").json() == before
