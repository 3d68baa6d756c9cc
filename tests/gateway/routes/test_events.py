from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.gateway.worlds import assert_problem, batch_of, bearer, client_on, create_run, losses_of, make_token, report


def events_of(client: TestClient, **query: Any) -> dict[str, Any]:
    response = client.get("/v1/runs/tune/events", params=query)
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


def test_events_say_what_happened_and_when(running: TestClient) -> None:
    begun = datetime.now(UTC).replace(microsecond=0)
    batch = batch_of(running, 0, 2)
    report(running, losses_of(batch))
    running.patch("/v1/runs/tune", json={"injection_ratio": "0.5"}).raise_for_status()
    found = events_of(running)
    kinds = [each["kind"] for each in found["events"]]
    assert kinds == ["created", "planned", "planned", "reported", "reported", "configured"]
    assert [each["seq"] for each in found["events"]] == list(range(6))
    assert found["as_of"] == found["next"] == 5
    assert all(begun <= datetime.fromisoformat(each["at"]) <= datetime.now(UTC) for each in found["events"][1:])
    assert found["events"][0]["at"].endswith("+00:00")
    assert sum(each["num_rows"] for each in found["events"] if each["kind"] == "planned") == len(batch)
    assert found["events"][-1]["change"] == {"injection_ratio": {"before": "0.3", "after": "0.5"}}
    assert [each["rank"] for each in found["events"]] == [None, None, None, 0, 0, None]


def test_events_are_filtered_and_paged(running: TestClient) -> None:
    batch_of(running, 0, 5)
    running.patch("/v1/runs/tune", json={"floor": 0.3}).raise_for_status()
    batch_of(running, 5, 5)
    running.post("/v1/runs/tune/close", json={}).raise_for_status()
    assert [each["kind"] for each in events_of(running, kind="configured, closed")["events"]] == [
        "configured",
        "closed",
    ]
    first = events_of(running, limit=3)
    assert (first["next"], first["as_of"]) == (2, 12)
    assert [each["seq"] for each in events_of(running, limit=3, after=first["next"])["events"]] == [3, 4, 5]
    at_the_end = events_of(running, after=12)
    assert (at_the_end["events"], at_the_end["next"]) == ([], 12)


@pytest.mark.parametrize("query", [{"kind": "vibes"}, {"kind": ""}, {"kind": "planned,"}, {"after": -2}, {"limit": 0}])
def test_a_query_that_means_nothing_is_refused(running: TestClient, query: dict[str, Any]) -> None:
    assert_problem(running.get("/v1/runs/tune/events", params=query), 422, "invalid-request")


def test_a_run_that_is_not_there_has_no_events(client: TestClient) -> None:
    assert_problem(client.get("/v1/runs/nobody/events"), 404, "unknown-run")


@pytest.mark.parametrize(
    "path", ["", "/tune", "/tune/stats", "/tune/strata", "/tune/samples", "/tune/samples/7", "/tune/events"]
)
def test_an_unknown_key_of_a_query_is_refused_by_name(running: TestClient, path: str) -> None:
    content = assert_problem(running.get(f"/v1/runs{path}?dommain=x"), 422, "invalid-request")
    assert [each["field"] for each in content["errors"]] == ["query.dommain"]


def test_an_unknown_key_of_a_query_is_refused_where_something_would_change(running: TestClient) -> None:
    for path, body in [("", {"run": "b", "corpus": "wiki"}), ("/tune/batches", {"step": 0}), ("/tune/close", {})]:
        assert_problem(running.post(f"/v1/runs{path}?dry=1", json=body), 422, "invalid-request")
    assert running.get("/v1/runs/tune").json()["as_of"] == 0
    assert len(running.get("/v1/runs").json()["runs"]) == 1


def test_events_ask_for_a_token_that_may_read_the_run(root: Any) -> None:
    reader, other = make_token(root, "read", "reader"), make_token(root, "read", "other", runs=("b",))
    admin = make_token(root, "admin", "admin")
    with client_on(root) as client:
        client.headers.update(bearer(admin))
        assert create_run(client).status_code == 201
        assert client.get("/v1/runs/tune/events", headers=bearer(reader)).status_code == 200
        assert_problem(client.get("/v1/runs/tune/events", headers=bearer(other)), 403)
