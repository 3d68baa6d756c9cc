"""The states of runs over HTTP: in the list, of one run, and in its statistics."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text

from replay_service.ledger.committer import wall_clock_ms
from tests.gateway.worlds import assert_problem, batch_of, bearer, client_on, create_run, losses_of, make_token, report
from tests.support import make_corpus


def finish(client: TestClient, num_steps: int, **more: object) -> httpx2.Response:
    return client.post("/v1/runs/tune/finish", json={"num_steps": num_steps, **more})


def told(client: TestClient) -> str:
    """The state of the run `tune`, which all answers tell alike."""
    answers = [client.get(f"/v1/runs/tune{part}").raise_for_status().json() for part in ("", "/stats")]
    (listed,) = [each for each in client.get("/v1/runs").json()["runs"] if each["run"] == "tune"]
    states: set[str] = {each["state"] for each in (*answers, listed)}
    (state,) = states
    return state


def stats_of(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/v1/runs/tune/stats").raise_for_status().json()
    return found


def pass_time(client: TestClient, seconds: float) -> None:
    """Let the service look at its runs as if so much time had passed."""
    state = client.app.state  # type: ignore[attr-defined]
    state.service = replace(state.service, clock=lambda: wall_clock_ms() + round(1000 * seconds))


def listed(client: TestClient, **query: object) -> list[str]:
    return [each["run"] for each in client.get("/v1/runs", params=query).raise_for_status().json()["runs"]]


def test_a_run_passes_through_its_states(running: TestClient) -> None:
    assert told(running) == "waiting"
    batch_of(running, 0, 3)
    assert told(running) == "running"
    pass_time(running, 500)
    assert told(running) == "running"
    pass_time(running, 700)
    assert told(running) == "stale"
    assert [each["id"] for each in stats_of(running)["advice"]][:1] == ["stale"]
    assert finish(running, 3).json()["state"] == "finished"
    assert told(running) == "finished"
    batch_of(running, 3)
    pass_time(running, 0)
    assert told(running) == "running"
    finish(running, 4)
    running.post("/v1/runs/tune/rewind", json={"step": 1}).raise_for_status()
    assert told(running) == "running"
    running.post("/v1/runs/tune/rewind", json={"step": -1}).raise_for_status()
    assert told(running) == "waiting"
    running.post("/v1/runs/tune/close", json={}).raise_for_status()
    assert told(running) == "closed"


def test_a_report_of_trained_rows_shows_that_the_job_lives(running: TestClient) -> None:
    batch_of(running, 0, 3)
    before = stats_of(running)
    counts = {"num_rows": 8, "num_rehearsed_rows": 2, "num_tokens": 80, "num_rehearsed_tokens": 20}
    steps = {"rank": 0, "first_step": 0, "next_step": 3}
    running.post("/v1/runs/tune/trained", json=steps | counts).raise_for_status()
    after = stats_of(running)
    assert before["last_trained_at"] is None and after["last_trained_at"] > before["last_plan_at"]


def test_the_end_of_an_attempt_before_a_rewind_is_not_heard(running: TestClient) -> None:
    batch_of(running, 0, 3)
    running.post("/v1/runs/tune/rewind", json={"step": 1}).raise_for_status()
    assert finish(running, 3, attempt=1).json()["state"] == "running"
    assert finish(running, 3, attempt=2).json()["state"] == "finished"


@pytest.mark.parametrize("body", [{}, {"num_steps": -1}, {"num_steps": "3"}, {"num_steps": 2**63}, {"steps": 3}])
def test_an_end_that_makes_no_sense_is_refused(running: TestClient, body: dict[str, object]) -> None:
    before = stats_of(running)
    assert_problem(running.post("/v1/runs/tune/finish", json=body), 422, "invalid-request")
    assert stats_of(running) == before


def test_runs_are_filtered_by_state_and_paged(client: TestClient) -> None:
    for i in range(7):
        create_run(client, run=f"run-{i}")
        if i % 2:
            client.post(f"/v1/runs/run-{i}/batches", json={"step": 0}).raise_for_status()
    client.post("/v1/runs/run-6/close", json={}).raise_for_status()
    assert listed(client) == [f"run-{i}" for i in range(7)]
    assert listed(client, state="running") == ["run-1", "run-3", "run-5"]
    assert listed(client, state="waiting, closed") == ["run-0", "run-2", "run-4", "run-6"]
    assert listed(client, state="damaged") == []
    first = client.get("/v1/runs", params={"state": "running", "limit": 2}).json()
    assert ([each["run"] for each in first["runs"]], first["next"]) == (["run-1", "run-3"], "run-3")
    rest = client.get("/v1/runs", params={"state": "running", "limit": 2, "after": first["next"]}).json()
    assert ([each["run"] for each in rest["runs"]], rest["next"]) == (["run-5"], None)
    assert client.get("/v1/runs", params={"limit": 7}).json()["next"] is None


@pytest.mark.parametrize(
    "query",
    [
        {"state": ""},
        {"state": "dead"},
        {"state": "running,"},
        {"state": "'; DROP TABLE runs; --"},
        {"limit": 0},
        {"limit": 1001},
        {"limit": -1},
        {"limit": "many"},
        {"after": "x" * 65},
        {"sate": "running"},
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(running: TestClient, query: dict[str, object]) -> None:
    assert_problem(running.get("/v1/runs", params=query), 422, "invalid-request")


def test_pages_hold_only_runs_that_a_token_is_for(root: Path) -> None:
    admin = bearer(make_token(root, "admin"))
    mine = bearer(make_token(root, "read", "reader", runs=("run-1", "run-4")))
    with client_on(root) as client:
        for i in range(6):
            body = {"run": f"run-{i}", "corpus": "wiki", "global_batch_size": 8, "injection_ratio": "0.3"}
            assert client.post("/v1/runs", json=body, headers=admin).status_code == 201
        first = client.get("/v1/runs?limit=1", headers=mine).json()
        assert ([each["run"] for each in first["runs"]], first["next"]) == (["run-1"], "run-1")
        rest = client.get("/v1/runs?limit=1&after=run-1", headers=mine).json()
        assert ([each["run"] for each in rest["runs"]], rest["next"]) == (["run-4"], None)


def lose(root: Path) -> None:
    shutil.rmtree(root / "corpora" / "wiki")


def replace_corpus(root: Path) -> None:
    lose(root)
    make_corpus(root / "corpora", seed=7)


def cut_short(root: Path) -> None:
    segment = min((root / "corpora" / "wiki").rglob("*.arrow"))
    segment.write_bytes(segment.read_bytes()[:100])


@pytest.mark.parametrize(
    ("harm", "said"), [(lose, "no corpus"), (replace_corpus, "another one of its name"), (cut_short, "cannot be read")]
)
def test_a_run_whose_corpus_is_damaged_says_so(root: Path, harm: Callable[[Path], None], said: str) -> None:
    with client_on(root) as client:
        create_run(client)
        batch_of(client, 0, 3)
    harm(root)
    with client_on(root) as client:
        client.post("/v1/runs/tune/batches", json={"step": 0, "num_steps": 20})
        assert told(client) == "damaged"
        assert listed(client, state="damaged") == ["tune"]
        (advice,) = [each for each in stats_of(client)["advice"] if each["id"] == "damaged"]
        assert said in advice["text"] and advice["remedy"]


def test_a_journal_that_cannot_be_folded_is_told_until_it_can(root: Path) -> None:
    with client_on(root) as client:
        create_run(client)
        batch_of(client, 0, 3)
    engine = create_engine(f"sqlite:///{root / 'journal.sqlite'}")

    def shift(steps: int) -> None:
        with engine.begin() as connection:
            connection.execute(text("UPDATE events SET step = step + :n WHERE kind = 'planned'"), {"n": steps})

    shift(5)
    with client_on(root) as client:
        for answer in (client.get("/v1/runs/tune/stats"), client.post("/v1/runs/tune/batches", json={"step": 9})):
            assert "journal verify tune" in assert_problem(answer, 500, "journal-damaged")["detail"]
        assert listed(client, state="damaged") == ["tune"]
        shift(-5)
        assert told(client) == "running"
        assert listed(client, state="damaged") == []
    engine.dispose()


def test_rows_due_follow_every_change_of_the_ratio(running: TestClient) -> None:
    due = []
    for ratio, num_steps in (("0.3", 7), ("0.07", 9), ("0.5", 3), ("0", 4), ("0.123", 11)):
        running.patch("/v1/runs/tune", json={"injection_ratio": ratio}).raise_for_status()
        batch_of(running, stats_of(running)["next_step"], num_steps)
        due.append(float(ratio) * 8 * num_steps)
        found = stats_of(running)
        assert found["rows_due"] == pytest.approx(list(accumulate(due))[-1], abs=1e-9)
        assert 0 <= found["rows_due"] - found["rows_rehearsed"] < 1


def test_the_statistics_tell_the_latest_change_and_the_delay(running: TestClient) -> None:
    assert stats_of(running)["last_change"] is None
    assert stats_of(running)["report_delay"] == {"p50_s": None, "p95_s": None, "late_steps": 0}
    batch = batch_of(running, 0, 3)
    running.patch("/v1/runs/tune", json={"injection_ratio": "0.4", "floor": 0.2}).raise_for_status()
    report(running, losses_of(batch))
    found = stats_of(running)
    change = found["last_change"]
    assert (change["kind"], change["text"]) == ("configured", "injection_ratio 0.3 -> 0.4, floor 0.1 -> 0.2")
    (event,) = running.get("/v1/runs/tune/events?kind=configured").json()["events"]
    assert {name: event[name] for name in ("seq", "kind", "text", "at")} == change
    assert 0 <= found["report_delay"]["p50_s"] <= found["report_delay"]["p95_s"]
    batch_of(running, 3, 5)
    pass_time(running, 3600)
    assert stats_of(running)["report_delay"]["late_steps"] == 5
    running.post("/v1/runs/tune/rewind", json={"step": -1}).raise_for_status()
    assert stats_of(running)["last_change"]["text"] == "rewound to the beginning"


def test_the_worst_domain_is_named(client: TestClient) -> None:
    create_run(client, injection_ratio="1", policy="uniform", held_back=0)
    assert stats_of(client)["worst_domain"] is None
    batch = batch_of(client, 0, 9)
    rows = losses_of(batch)
    rows["loss_nats"] = batch.base_loss + 0.1 + 0.5 * (batch.stratum >= 2)
    report(client, rows)
    found = stats_of(client)
    worst = found["worst_domain"]
    assert worst.pop("name") == "fr"
    assert worst == found["forgetting_by_domain"]["fr"] and worst["nats"] == pytest.approx(0.6, abs=0.05)
    assert found["budget_nats"] is None
