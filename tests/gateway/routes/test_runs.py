import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.gateway.worlds import RUN, all_of, assert_problem, batch_of, client_on, create_run
from tests.support import make_corpus


def test_a_run_is_created(client: TestClient) -> None:
    response = create_run(client, seed=7)
    assert response.status_code == 201
    assert response.headers["location"] == "/v1/runs/tune"
    run = response.json()
    assert (run["run"], run["corpus"], run["generation"]) == ("tune", "wiki", 1)
    assert (run["next_step"], run["policy_version"]) == (0, 1)
    assert (run["config"]["injection_ratio"], run["config"]["seed"]) == ("0.3", 7)
    assert client.get("/v1/runs/tune").json() == run


def test_asking_again_for_the_same_run_is_fine(running: TestClient) -> None:
    batch_of(running, 0, 3)
    again = create_run(running)
    assert again.status_code == 200
    assert again.json()["next_step"] == 3


@pytest.mark.parametrize(
    "change", [{"injection_ratio": "0.4"}, {"seed": 1}, {"policy": "uniform"}, {"global_batch_size": 4}]
)
def test_another_configuration_under_the_same_name_is_refused(running: TestClient, change: dict[str, object]) -> None:
    before = all_of(running)
    assert_problem(create_run(running, **change), 409, "run-exists")
    assert all_of(running) == before


def test_another_corpus_under_the_same_name_is_refused(root: Path, running: TestClient) -> None:
    make_corpus(root / "corpora", "code")
    assert_problem(create_run(running, corpus="code"), 409, "run-exists")


def test_a_run_survives_a_restart(root: Path, running: TestClient) -> None:
    before = all_of(running)
    with client_on(root) as restarted:
        assert all_of(restarted) == before
        assert create_run(restarted).status_code == 200


def test_a_ratio_is_taken_as_the_decimal_that_was_written(client: TestClient) -> None:
    assert create_run(client, injection_ratio=0.1).json()["config"]["injection_ratio"] == "0.1"


@pytest.mark.parametrize("ratio", ["0", "1", 0, 1, "0.333", 1e-9])
def test_every_ratio_from_nought_to_one_is_accepted(client: TestClient, ratio: object) -> None:
    assert create_run(client, injection_ratio=ratio).status_code == 201


@pytest.mark.parametrize(
    "ratio",
    [
        1.5,
        -0.1,
        "1.0001",
        "abc",
        "",
        "nan",
        "inf",
        "1e-999999999",
        "9" * 10_000,
        "1/3",
        "0.1_0",
        "0.5\r\n",
        "\u0660.\u0665",
    ],
)
def test_a_ratio_that_is_no_share_is_refused(client: TestClient, ratio: object) -> None:
    content = assert_problem(create_run(client, injection_ratio=ratio), 422, "invalid-run")
    assert "injection_ratio" in content["detail"]
    assert_problem(client.get("/v1/runs/tune"), 404, "unknown-run")


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "null", "[]"])
@pytest.mark.parametrize("key", ["injection_ratio", "delta_nats", "half_life_steps", "floor", "global_batch_size"])
def test_a_setting_that_is_no_number_is_refused(client: TestClient, key: str, literal: str) -> None:
    text = f'{{"run": "tune", "corpus": "wiki", "global_batch_size": 8, "injection_ratio": 0.3, "{key}": {literal}}}'
    response = client.post("/v1/runs", content=text, headers={"content-type": "application/json"})
    assert key in assert_problem(response, 422)["detail"]
    assert client.get("/v1/runs").json()["runs"] == []


@pytest.mark.parametrize(
    "change",
    [
        {"global_batch_size": 0},
        {"global_batch_size": 2**25},
        {"seed": -1},
        {"seed": 2**63},
        {"policy": "best"},
        {"signal": "vibes"},
        {"sharpness": 17},
        {"floor": 1.1},
        {"prior_weight": 0},
        {"half_life_steps": 0},
        {"report_window_steps": 0},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(client: TestClient, change: dict[str, object]) -> None:
    (key,) = change
    content = assert_problem(create_run(client, **change), 422, "invalid-request")
    assert [each["field"] for each in content["errors"]] == [f"body.{key}"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "Tune", "a b", "a/b", "-a", "ä", "a" * 65, "a\n", "a\0", 7, None]
)
def test_a_name_that_could_not_be_a_file_name_is_refused(client: TestClient, name: object) -> None:
    assert_problem(create_run(client, run=name), 422, "invalid-request")
    assert_problem(create_run(client, corpus=name), 422, "invalid-request")
    assert client.get("/v1/runs").json()["runs"] == []


@pytest.mark.parametrize("name", ["a", "0", "a.b_c-d", "a" * 64])
def test_a_name_within_the_rule_is_accepted(client: TestClient, name: str) -> None:
    assert create_run(client, run=name).status_code == 201
    assert client.get(f"/v1/runs/{name}").json()["run"] == name


def test_an_unknown_key_is_refused_by_name(client: TestClient) -> None:
    content = assert_problem(create_run(client, injection_rate="0.3"), 422, "invalid-request")
    assert [each["field"] for each in content["errors"]] == ["body.injection_rate"]
    assert "body.injection_rate" in content["detail"]


@pytest.mark.parametrize("missing", sorted(RUN))
def test_a_missing_key_is_refused_by_name(client: TestClient, missing: str) -> None:
    body = {key: value for key, value in RUN.items() if key != missing}
    content = assert_problem(client.post("/v1/runs", json=body), 422, "invalid-request")
    assert [each["field"] for each in content["errors"]] == [f"body.{missing}"]


def test_a_run_of_an_unknown_corpus_is_refused(client: TestClient) -> None:
    assert_problem(create_run(client, corpus="nothing"), 404, "unknown-corpus")
    assert client.get("/v1/runs").json()["runs"] == []


def test_a_run_that_would_rehearse_more_than_there_is_in_one_step_is_refused(client: TestClient) -> None:
    assert_problem(create_run(client, global_batch_size=800, injection_ratio="0.2"), 422, "invalid-run")
    assert create_run(client, global_batch_size=800, injection_ratio="0.1").status_code == 201


def test_an_unknown_run_is_not_found(client: TestClient) -> None:
    content = assert_problem(client.get("/v1/runs/nobody"), 404, "unknown-run")
    assert "nobody" in content["detail"]


def test_runs_are_listed_by_name(client: TestClient) -> None:
    assert client.get("/v1/runs").json()["runs"] == []
    for name in ("b", "a", "c"):
        create_run(client, run=name)
    runs = client.get("/v1/runs").json()["runs"]
    assert [run["run"] for run in runs] == ["a", "b", "c"]
    one = client.get("/v1/runs/a").json()
    assert one == {**runs[0], "policy_version": 1, "max_window_steps": 1024}


def test_a_run_whose_corpus_is_gone_spoils_no_list(root: Path, client: TestClient) -> None:
    make_corpus(root / "corpora", "code")
    create_run(client, run="orphan", corpus="code")
    shutil.rmtree(root / "corpora" / "code")
    assert [run["run"] for run in client.get("/v1/runs").json()["runs"]] == ["orphan"]
