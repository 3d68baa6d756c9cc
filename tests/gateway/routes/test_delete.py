from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from replay_service.tokens import Scope
from tests.gateway.worlds import (
    RUN,
    all_of,
    ask,
    assert_problem,
    batch_of,
    bearer,
    client_on,
    create_run,
    losses_of,
    make_token,
    report,
)

NAMED = [
    ("GET", "", None),
    ("GET", "/stats", None),
    ("GET", "/strata", None),
    ("GET", "/samples", None),
    ("GET", "/samples/0", None),
    ("PATCH", "", {"floor": 0.2}),
    ("POST", "/batches", {"step": 0}),
    ("POST", "/losses", {"rows": []}),
    ("POST", "/rewind", {"step": -1}),
    ("POST", "/adopt", {}),
    ("POST", "/close", {}),
    ("DELETE", "", None),
]


@pytest.fixture
def closed(running: TestClient) -> TestClient:
    """A client whose service has a run, `tune`, that has reports and is closed."""
    assert report(running, losses_of(batch_of(running, 0, 4))).status_code == 200
    assert running.get("/v1/runs/tune/samples").status_code == 200
    assert running.post("/v1/runs/tune/close", json={}).status_code == 200
    return running


def test_a_run_that_is_not_closed_is_not_deleted(running: TestClient) -> None:
    batch_of(running, 0, 3)
    before = all_of(running)
    assert "close it first" in assert_problem(running.delete("/v1/runs/tune"), 409, "run-open")["detail"]
    assert all_of(running) == before


def test_a_deleted_run_is_told_once_and_known_nowhere(closed: TestClient) -> None:
    rows = losses_of(batch_of(closed, 0, 4))
    told = closed.get("/v1/runs").json()["runs"]
    assert [closed.delete("/v1/runs/tune").raise_for_status().json()] == told
    for method, path, body in NAMED:
        assert_problem(closed.request(method, f"/v1/runs/tune{path}", json=body), 404, "unknown-run")
    assert_problem(report(closed, rows), 404, "unknown-run")
    assert closed.get("/v1/runs").json()["runs"] == []
    assert closed.get("/v1/corpora/wiki").status_code == 200


def test_its_name_is_free(root: Path, closed: TestClient) -> None:
    closed.delete("/v1/runs/tune")
    with client_on(root) as restarted:
        assert create_run(restarted, seed=9, global_batch_size=16).status_code == 201
        assert batch_of(restarted, 0, 2).header.attempt == 1
    assert closed.get("/v1/runs/tune").json()["next_step"] == 2
    assert closed.get("/v1/runs/tune/samples").json()["samples"] == []


def test_another_process_that_knew_the_run_answers_as_if_it_never_had(root: Path, closed: TestClient) -> None:
    with client_on(root) as another:
        assert another.get("/v1/runs/tune").json()["closed"]
        assert another.post("/v1/runs/tune/close", json={}).status_code == 200
        assert_problem(closed.delete("/v1/runs/tune"), 503, "run-taken")
        assert closed.delete("/v1/runs/tune").status_code == 200
        assert_problem(another.get("/v1/runs/tune"), 404, "unknown-run")
        assert_problem(ask(another), 503, "run-taken")
        assert_problem(ask(another), 404, "unknown-run")


@pytest.fixture
def guarded(root: Path) -> Iterator[tuple[TestClient, dict[str, dict[str, str]]]]:
    """A client on a closed run, and the headers of callers of each scope, and of an admin of another run."""
    scopes: tuple[Scope, ...] = ("read", "train", "admin")
    headers = {scope: bearer(make_token(root, scope, f"a-{scope}")) for scope in scopes}
    headers["other"] = bearer(make_token(root, "admin", "somebody-else", runs=("yours",)))
    with client_on(root) as client:
        assert client.post("/v1/runs", json=RUN, headers=headers["admin"]).status_code == 201
        client.post("/v1/runs/tune/close", json={}, headers=headers["admin"])
        yield client, headers


@pytest.mark.parametrize(
    ("caller", "slug"), [("read", "scope-too-small"), ("train", "scope-too-small"), ("other", "run-forbidden")]
)
def test_only_an_admin_of_the_run_deletes_it(
    guarded: tuple[TestClient, dict[str, dict[str, str]]], caller: str, slug: str
) -> None:
    client, headers = guarded
    assert_problem(client.delete("/v1/runs/tune", headers=headers[caller]), 403, slug)
    assert client.get("/v1/runs/tune", headers=headers["read"]).json()["closed"]


def test_who_deleted_a_run_is_written_down(guarded: tuple[TestClient, dict[str, dict[str, str]]]) -> None:
    client, headers = guarded
    with capture_logs() as logs:
        assert_problem(client.delete("/v1/runs/tune", headers=headers["train"]), 403)
        assert client.delete("/v1/runs/tune", headers=headers["admin"]).status_code == 200
    lines = [{name: line[name] for name in ("who", "method", "route", "run", "status")} for line in logs]
    of_both = {"method": "DELETE", "route": "/v1/runs/{run}", "run": "tune"}
    assert lines == [{"who": "a-train", "status": 403} | of_both, {"who": "a-admin", "status": 200} | of_both]
