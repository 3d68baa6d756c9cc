import sqlite3
from pathlib import Path

from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from tests.gateway.worlds import assert_problem


def test_a_running_service_is_healthy_and_ready(running: TestClient) -> None:
    for path in ("/healthz", "/readyz"):
        response = running.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_a_service_that_cannot_read_its_journal_lives_but_is_not_ready(root: Path, client: TestClient) -> None:
    with sqlite3.connect(root / "journal.sqlite") as journal:
        journal.execute("DROP TABLE runs")
    assert client.get("/healthz").status_code == 200
    with capture_logs() as logs:
        assert_problem(client.get("/readyz"), 503, "not-ready")
    assert "no such table: runs" in str(logs[0]["exc_info"])
