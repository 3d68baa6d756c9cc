"""`/metrics` of a service of one process."""

import subprocess
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from replay_service.gateway.metrics import table
from replay_service.ledger.meter import PHASES
from tests.deploy.promtool import promtool
from tests.gateway.metrics.worlds import scrape, scrape_until, value
from tests.gateway.worlds import RUN, ask, batch_of, bearer, client_on, create_run, losses_of, make_token, report
from tests.support import make_corpus


def test_answers_are_counted_by_the_template_of_their_route(running: TestClient) -> None:
    batch_of(running, 0)
    running.get("/v1/runs/nobody")
    running.get("/v1/nowhere/at/all")
    running.get("/healthz")
    running.request("BREW", "/v1/runs")
    found = scrape(running)
    assert value(found, "http_requests_total", route="/v1/runs/{run}/batches", method="POST", code="200") == 1
    assert value(found, "http_requests_total", route="/v1/runs/{run}", code="404") == 1
    assert value(found, "http_requests_total", route="unmatched", code="404") == 1
    assert value(found, "http_requests_total", route="/healthz", code="200") == 1
    assert value(found, "http_requests_total", route="/v1/runs", method="other", code="405") == 1
    assert value(found, "http_request_duration_seconds_count", route="/v1/runs/{run}/batches") == 1
    assert value(found, "requests_in_progress") == 1  # this one


def test_a_plan_that_waits_for_reports_is_told_from_other_refusals(client: TestClient) -> None:
    create_run(client, feedback={"mode": "fenced", "lag": 1})
    batch_of(client, 0)
    assert ask(client, step=1).status_code == 503
    found = scrape(client)
    assert value(found, "requests_refused_total", reason="awaiting-reports") == 1
    assert value(found, "http_requests_total", route="/v1/runs/{run}/batches", code="503") == 1


def test_the_samples_of_a_run_are_counted_by_their_outcome(running: TestClient) -> None:
    batch = batch_of(running, 0, 10)
    rows = losses_of(batch)
    report(running, rows)
    report(running, rows[:3])
    late = rows[:2].copy()
    late["attempt"] = 7
    report(running, late)
    found = scrape(running)
    outcomes = {each: value(found, "run_samples_total", run="tune", outcome=each) for each in ("planned", "reported")}
    assert outcomes == {"planned": len(batch), "reported": len(batch)}
    assert value(found, "run_samples_total", run="tune", outcome="duplicate") == 3
    assert value(found, "run_samples_total", run="tune", outcome="rejected") == 2
    assert value(found, "run_report_delay_seconds_count", run="tune") == 10
    assert value(found, "owner_takeovers_total") == 1
    assert (value(found, "commit_duration_seconds_count") or 0) >= 2
    assert {dict(labels)["phase"] for labels in found["replay_owner_seconds_total"]} == set(PHASES)


def test_the_numbers_of_a_state_come_with_a_later_scrape(running: TestClient) -> None:
    batch_of(running, 0, 11)
    found = scrape_until(running, lambda found: value(found, "run_info", run="tune"))
    assert value(found, "run_info", run="tune", corpus="wiki", policy="mix_cd", signal="token_flip") == 1
    assert value(found, "run_next_step", run="tune") == 11
    assert value(found, "run_rows_due", run="tune") == pytest.approx(11 * 8 * 0.3)
    assert value(found, "run_rows_rehearsed", run="tune") == int(11 * 8 * 0.3)
    assert value(found, "run_samples_pending", run="tune") == int(11 * 8 * 0.3)
    assert value(found, "run_injection_ratio", run="tune") == 0.3
    assert value(found, "run_state", run="tune", state="running") == 1
    assert value(found, "runs", state="running") == 1
    assert value(found, "runs", state="stale") == 0


def test_what_is_not_known_is_absent(running: TestClient) -> None:
    found = scrape_until(running, lambda found: value(found, "run_info", run="tune"))
    for name in ("run_forgetting_nats", "run_forgetting_low_nats", "run_forgetting_budget_nats"):
        assert value(found, name) is None
    for name in ("run_last_plan_timestamp_seconds", "run_last_report_timestamp_seconds", "run_domain_damage_ratio"):
        assert value(found, name) is None
    assert "NaN" not in running.get("/metrics").text


def test_forgetting_comes_with_its_interval_its_budget_and_its_domains(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpora", rows_per_domain=400)
    with client_on(tmp_path) as client:
        create_run(client, injection_ratio="auto", global_batch_size=64, budget={"first_ratio": "0.2"})
        report(client, losses_of(batch_of(client, 0, 40), 9.0, num_flips=3))
        found = scrape_until(client, lambda found: value(found, "run_forgetting_nats", run="tune"))
    low, nats, high = (value(found, f"run_forgetting{end}_nats", run="tune") for end in ("_low", "", "_high"))
    assert low is not None
    assert nats is not None
    assert high is not None
    assert low < nats < high
    assert value(found, "run_forgetting_budget_nats", run="tune") == 0.05
    assert value(found, "run_forgetting_covered_ratio", run="tune") == 1
    for domain in ("en", "fr"):
        assert value(found, "run_domain_forgetting_low_nats", run="tune", domain=domain) is not None
        assert 0 < (value(found, "run_domain_damage_ratio", run="tune", domain=domain) or 0) <= 1


def test_a_run_that_is_closed_has_no_series_any_more(running: TestClient) -> None:
    report(running, losses_of(batch_of(running, 0, 5)))
    assert value(scrape_until(running, lambda found: value(found, "run_info")), "run_samples_total") is not None
    running.post("/v1/runs/tune/close", json={})
    found = scrape(running)
    assert all(value(found, each.name) is None for each in table.OF_RUNS if "run" in each.labels)
    assert value(found, "runs", state="closed") == 1


def test_at_most_fifty_runs_have_series_the_latest_ones(client: TestClient) -> None:
    for i in range(table.MOST_RUNS + 3):
        create_run(client, run=f"run-{i:02d}")
    client.post("/v1/runs/run-01/batches", json={"step": 0})
    found = scrape(client)
    runs = {dict(labels)["run"] for labels in found["replay_run_next_step"]}
    assert len(runs) == table.MOST_RUNS
    assert "run-01" in runs
    assert value(found, "runs", state="waiting") == table.MOST_RUNS + 2


def test_at_most_thirty_two_domains_of_a_run_have_series(tmp_path: Path) -> None:
    names = tuple(f"domain {i:02d}" for i in range(table.MOST_DOMAINS + 8))
    make_corpus(tmp_path / "corpora", domains=names, rows_per_domain=40)
    with client_on(tmp_path) as client:
        create_run(client, injection_ratio="0.5", global_batch_size=64)
        report(client, losses_of(batch_of(client, 0, 30), num_flips=2))
        found = scrape_until(client, lambda found: value(found, "run_domain_damage_ratio"))
    assert len(found["replay_run_domain_damage_ratio"]) == table.MOST_DOMAINS


def test_scraping_owns_nothing(root: Path) -> None:
    with client_on(root) as owner:
        create_run(owner)
        report(owner, losses_of(batch_of(owner, 0, 5)))
        with client_on(root) as other:
            found = scrape_until(other, lambda found: value(found, "run_info", run="tune"))
        assert value(found, "run_next_step", run="tune") == 5
        assert value(found, "owner_takeovers_total") == 0
        assert value(found, "run_samples_total") is None  # another service counts them
        assert report(owner, losses_of(batch_of(owner, 5))).json()["accepted"] > 0
        assert value(scrape(owner), "owner_takeovers_total") == 1


def test_a_token_for_some_runs_sees_series_of_these_alone(root: Path) -> None:
    chief, mine = make_token(root, "admin", "chief"), make_token(root, "read", "mine", runs=("tune",))
    with client_on(root) as client:
        for run in ("tune", "secret"):
            assert client.post("/v1/runs", json=RUN | {"run": run}, headers=bearer(chief)).status_code == 201
        assert client.get("/metrics").status_code == 401
        assert value(scrape(client, bearer(chief)), "run_next_step", run="secret") == 0
        text = client.get("/metrics", headers=bearer(mine)).text
        assert 'run="tune"' in text
        assert "secret" not in text
        assert 'replay_runs{state="waiting"} 1\n' in text


def test_corpora_and_ingests_are_told_of(root: Path) -> None:
    from replay_service.corpus.ingest.status import IngestProgress, status_of

    with client_on(root) as client:
        with status_of(root / "corpora/wiki", lambda _: None, lambda: False) as tell:
            tell(IngestProgress(1, 2, 0.5, 4321, 9, 0, 1))
            found = scrape(client)
            assert value(found, "ingest_running", corpus="wiki") == 1
        ended = scrape(client)
    assert value(found, "corpus_generation", corpus="wiki") == 1
    assert value(found, "corpus_damaged_blocks", corpus="wiki") == 0
    assert value(ended, "ingest_running", corpus="wiki") == 0
    assert value(ended, "ingest_rows_total", corpus="wiki") == 4321
    assert value(ended, "ingest_last_progress_timestamp_seconds", corpus="wiki") is not None


def test_hostile_names_do_not_break_the_format(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpora", domains=('a"} 1\nreplay_evil 1', "b\\", "ü"), rows_per_domain=40)
    with client_on(tmp_path) as client:
        create_run(client, injection_ratio="0.5")
        report(client, losses_of(batch_of(client, 0, 9), num_flips=2))
        found = scrape_until(client, lambda found: value(found, "run_domain_damage_ratio"))
    assert {dict(labels)["domain"] for labels in found["replay_run_domain_damage_ratio"]} == {
        'a"} 1\nreplay_evil 1',
        "b\\",
        "ü",
    }


def test_every_series_is_of_the_table_and_passes_promtool(running: TestClient) -> None:
    report(running, losses_of(batch_of(running, 0, 5)))
    scrape_until(running, lambda found: value(found, "run_info"))
    text = running.get("/metrics").text
    kinds = {each.full_name: each.kind for each in table.METRICS}
    typed = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    assert typed.items() <= kinds.items()
    result = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_a_key_in_the_query_is_refused(client: TestClient) -> None:
    assert client.get("/metrics?run=tune").status_code == 422
