"""Runs on a corpus that grows, over HTTP."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.gateway.worlds import JSON, all_of, ask, assert_problem, batch_of, client_on, create_run, losses_of, report
from tests.support import grow_corpus


def adopt(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/runs/tune/adopt", json=body)


def generation_of(client: TestClient) -> int:
    generation: int = client.get("/v1/runs/tune").json()["generation"]
    return generation


def test_a_run_sees_the_latest_generation_from_then_on(root: Path, running: TestClient) -> None:
    before = batch_of(running, 0, 2)
    grow_corpus(root / "corpora", new_domain="it")
    assert (generation_of(running), batch_of(running, 0, 2).header.generation) == (1, 1)
    response = adopt(running)
    assert response.status_code == 200
    content = response.json()
    assert (content["generation"], content["next_step"], content["policy_version"]) == (2, 2, 2)
    assert running.get("/v1/runs/tune").json() == content
    after = batch_of(running, 2, 3)
    assert after.header.generation == 2
    assert ask(running, JSON, step=2).json()["generation"] == 2
    assert batch_of(running, 0, 2).sample_id.tolist() == before.sample_id.tolist()


def test_new_strata_are_listed_and_drawn_from(root: Path, running: TestClient) -> None:
    grow_corpus(root / "corpora", num_rows=400, new_domain="it")
    assert len(running.get("/v1/runs/tune/strata").json()["strata"]) == 4
    adopt(running)
    strata = running.get("/v1/runs/tune/strata").json()["strata"]
    assert [each["name"] for each in strata][4:] == ["it/q0", "it/q1"]
    assert [each["num_samples"] for each in strata] == [20, 20, 20, 20, 200, 200]
    batch = batch_of(running, 0, 10)
    assert (batch.stratum >= 4).any()
    assert (batch.length == 12).all()
    assert report(running, losses_of(batch, num_flips=3)).json()["accepted"] == len(batch)
    drawn = [each["num_drawn"] for each in running.get("/v1/runs/tune/strata").json()["strata"]]
    assert drawn == [int((batch.stratum == k).sum()) for k in range(6)]
    assert len(running.get("/v1/runs/tune/samples").json()["samples"]) == len(set(batch.sample_id.tolist()))


def test_a_stated_generation_can_be_adopted(root: Path, running: TestClient) -> None:
    for _ in range(3):
        grow_corpus(root / "corpora")
    assert adopt(running, generation=3).json()["generation"] == 3
    assert adopt(running, generation=3).json()["policy_version"] == 2
    assert adopt(running, generation=None).json()["generation"] == 4


@pytest.mark.parametrize("generation", [1, 4, 2**40])
def test_a_generation_that_is_gone_by_or_not_there_is_refused(root: Path, running: TestClient, generation: int) -> None:
    for _ in range(2):
        grow_corpus(root / "corpora")
    adopt(running, generation=2)
    before = all_of(running)
    content = assert_problem(adopt(running, generation=generation), 422, "invalid-run")
    assert content["generation"] == 2
    assert str(generation) in content["detail"]
    assert all_of(running) == before


@pytest.mark.parametrize("body", [{"generation": 0}, {"generation": -1}, {"generation": "two"}, {"gen": 2}])
def test_what_is_no_generation_is_refused_by_name(running: TestClient, body: dict[str, Any]) -> None:
    (key,) = body
    content = assert_problem(running.post("/v1/runs/tune/adopt", json=body), 422, "invalid-request")
    assert [each["field"] for each in content["errors"]] == [f"body.{key}"]


def test_an_unknown_run_adopts_nothing(client: TestClient) -> None:
    assert_problem(client.post("/v1/runs/nobody/adopt", json={}), 404, "unknown-run")


def test_what_was_adopted_outlives_the_process(root: Path, running: TestClient) -> None:
    grow_corpus(root / "corpora")
    adopt(running)
    batch_of(running, 0, 3)
    before = all_of(running)
    with client_on(root) as restarted:
        assert all_of(restarted) == before


def test_a_new_run_begins_with_the_latest_generation(root: Path, client: TestClient) -> None:
    grow_corpus(root / "corpora")
    assert create_run(client).json()["generation"] == 2
    grow_corpus(root / "corpora")
    again = create_run(client)
    assert (again.status_code, again.json()["generation"]) == (200, 2)


def test_a_run_adopts_by_itself_when_it_is_told_to(root: Path, client: TestClient) -> None:
    create_run(client, adopt_every_steps=3)
    batch_of(client, 0, 1)
    grow_corpus(root / "corpora")
    assert [batch_of(client, step).header.generation for step in range(1, 5)] == [1, 1, 2, 2]
    changed = client.patch("/v1/runs/tune", json={"adopt_every_steps": 0}).json()
    assert changed["config"]["adopt_every_steps"] == 0


def test_a_fenced_run_that_shall_adopt_by_itself_is_refused(client: TestClient) -> None:
    fenced = {"mode": "fenced", "lag": 2}
    content = assert_problem(create_run(client, adopt_every_steps=3, feedback=fenced), 422, "invalid-run")
    assert "adopt_every_steps" in content["detail"]
    create_run(client, feedback=fenced)
    before = all_of(client)
    assert_problem(client.patch("/v1/runs/tune", json={"adopt_every_steps": 3}), 422, "invalid-run")
    assert all_of(client) == before


def test_a_rewind_to_before_an_adoption_takes_it_back(root: Path, running: TestClient) -> None:
    batch_of(running, 0, 4)
    grow_corpus(root / "corpora")
    adopt(running)
    batch_of(running, 4, 2)
    assert running.post("/v1/runs/tune/rewind", json={"step": 4}).json()["generation"] == 2
    assert running.post("/v1/runs/tune/rewind", json={"step": 2}).json()["generation"] == 1
