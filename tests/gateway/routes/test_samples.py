from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.gateway.worlds import assert_problem, batch_of, losses_of, report


@pytest.fixture
def reported(running: TestClient) -> TestClient:
    batch = batch_of(running, 0, 20)
    rows = losses_of(batch)
    rows["loss_nats"] += rows["step"] / 10
    report(running, rows)
    return running


def samples(client: TestClient, **query: Any) -> dict[str, Any]:
    response = client.get("/v1/runs/tune/samples", params=query)
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


def test_the_most_damaged_come_first(reported: TestClient) -> None:
    excess = [each["excess_nats"] for each in samples(reported)["samples"]]
    assert excess == sorted(excess, reverse=True)
    assert len(excess) > 10


def test_pages_follow_each_other(reported: TestClient) -> None:
    whole = samples(reported, order="loss", limit=1000)
    assert whole["cursor"] is None
    page, paged = samples(reported, order="loss", limit=7), []
    while page["cursor"]:
        paged += page["samples"]
        page = samples(reported, order="loss", limit=7, cursor=page["cursor"])
    assert paged + page["samples"] == whole["samples"]


def test_a_sample_tells_its_visits(reported: TestClient) -> None:
    (first, *_) = samples(reported, order="-visits")["samples"]
    content = reported.get(f"/v1/runs/tune/samples/{first['sample_id']}").json()
    visits, as_of = content.pop("visits"), content.pop("as_of")
    assert content == first
    assert as_of == reported.get("/v1/runs/tune").json()["as_of"]
    assert [visit["step"] for visit in visits][:: max(1, len(visits) - 1)][0] == first["first_step"]
    assert sum(visit["num_tokens"] for visit in visits) == first["num_tokens"]


def test_a_run_without_reports_has_no_samples(running: TestClient) -> None:
    assert samples(running) == {"run": "tune", "as_of": 0, "samples": [], "cursor": None}


@pytest.mark.parametrize(
    "query",
    [
        {"order": "best"},
        {"order": "--loss"},
        {"limit": 0},
        {"limit": 1001},
        {"stratum": -1},
        {"cursor": "x"},
        {"cursor": "bnVsbA=="},
        {"cursor": "WzEsIDJd" * 3},
    ],
)
def test_a_query_that_makes_no_sense_is_refused(reported: TestClient, query: dict[str, Any]) -> None:
    assert_problem(reported.get("/v1/runs/tune/samples", params=query), 422, "invalid-request")


@pytest.mark.parametrize("sample_id", [-1, 12345678901, 2**63, 2**80])
def test_a_sample_of_which_nothing_is_known_is_not_found(reported: TestClient, sample_id: int) -> None:
    assert_problem(reported.get(f"/v1/runs/tune/samples/{sample_id}"), 404, "unknown-sample")
