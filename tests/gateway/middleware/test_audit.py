import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from replay_service.errors import CorpusError
from replay_service.settings import load_settings
from replay_service.wire.protocol import ARROW_STREAM
from tests.gateway.worlds import (
    RUN,
    all_of,
    ask,
    batch_of,
    bearer,
    client_on,
    create_run,
    losses_of,
    make_token,
    report,
)
from tests.support import running_service


def audited(logs: list[Any]) -> list[dict[str, Any]]:
    """The audit lines, without what the log puts on every line."""
    return [
        {name: value for name, value in line.items() if name not in ("event", "log_level")}
        for line in logs
        if line["event"] == "audit"
    ]


@pytest.fixture
def token(root: Path) -> str:
    return make_token(root, "train", "trainer-7", runs=("tune",))


@pytest.fixture
def guarded(root: Path, token: str) -> Iterator[TestClient]:
    with client_on(root) as client:
        yield client


def test_every_change_is_written_down_with_who_made_it(guarded: TestClient, token: str) -> None:
    guarded.headers.update(bearer(token))
    with capture_logs() as logs:
        create_run(guarded)
        report(guarded, losses_of(batch_of(guarded, 0)))
        guarded.patch("/v1/runs/tune", json={"floor": 0.2})
    of_all = {"who": "trainer-7", "client": "testclient", "run": "tune"}
    assert audited(logs) == [
        of_all | {"method": "POST", "route": "/v1/runs", "status": 201},
        of_all | {"method": "POST", "route": "/v1/runs/{run}/batches", "status": 200},
        of_all | {"method": "POST", "route": "/v1/runs/{run}/losses", "status": 200},
        of_all | {"method": "PATCH", "route": "/v1/runs/{run}", "status": 200},
    ]


def test_what_was_refused_for_want_of_a_token_is_written_down(guarded: TestClient, token: str) -> None:
    with capture_logs() as logs:
        guarded.post("/v1/runs/tune/close", json={})
        guarded.post("/v1/runs", json=RUN | {"run": "mine"}, headers=bearer(token))
        guarded.post("/v1/runs/other/close", json={}, headers=bearer(token))
        guarded.delete("/v1/corpora/wiki", headers=bearer(token))
        guarded.post("/v1/what?ever=1")
    lines = [
        (each["who"], each["route"], each.get("run", each.get("corpus")), each["status"]) for each in audited(logs)
    ]
    assert lines == [
        ("anonymous", "/v1/runs/{run}/close", "tune", 401),
        ("trainer-7", "/v1/runs", "mine", 403),
        ("trainer-7", "/v1/runs/{run}/close", "other", 403),
        ("trainer-7", "/v1/corpora/{corpus}", "wiki", 403),
        ("anonymous", None, None, 401),
    ]


def test_an_ingest_that_is_refused_names_its_corpus(client: TestClient) -> None:
    with capture_logs() as logs:
        client.post("/v1/corpora", json={"corpus": "mine", "source": "/etc?secret=swordfish", "model": "none"})
    (line,) = audited(logs)
    assert (line["who"], line["corpus"], line["status"]) == ("anonymous", "mine", 403)
    assert "swordfish" not in str(logs)


def test_what_changes_nothing_is_not_written_down(running: TestClient) -> None:
    with capture_logs() as logs:
        all_of(running)
        running.post("/v1/runs", json={})
        running.post("/v1/runs/nobody/close", json={})
        running.delete("/v1/runs/tune")
    assert audited(logs) == []


def test_a_batch_is_written_down_when_its_steps_are_planned_and_not_when_it_is_asked_for_again(
    running: TestClient,
) -> None:
    with capture_logs() as logs:
        for step in (0, 1, 0, 1):
            batch_of(running, step)
        ask(running, headers={"Accept": "application/json"})
    assert [line["route"] for line in audited(logs)] == 2 * ["/v1/runs/{run}/batches"]


def test_neither_a_body_nor_a_token_nor_a_query_is_in_the_log(root: Path, guarded: TestClient, token: str) -> None:
    with capture_logs() as logs:
        for headers in (bearer(token), bearer("rpl_swordfish"), {}):
            guarded.post("/v1/runs?password=swordfish", json=RUN | {"injection_ratio": "0.0625"}, headers=headers)
            guarded.post("/v1/runs/tune/losses", content=b"swordfish", headers=headers | {"content-type": ARROW_STREAM})
    assert len(audited(logs)) == 4
    for secret in (token, "swordfish", "0.0625"):
        assert secret not in str(logs)


def lines_of(root: Path) -> list[dict[str, Any]]:
    """The log of a real server; every line of it is one JSON object."""
    return [json.loads(line) for line in (root / "serve.log").read_text().splitlines()]


def test_a_line_of_the_log_cannot_be_forged_by_a_path(root: Path) -> None:
    forged = '%0A{"event": "audit", "who": "chief"}%0D%0A'.replace('"', "%22").replace(" ", "%20")
    with running_service(root, options=["--log-level", "debug"]) as (base_url, _):
        for path in (f"/v1/runs/{forged}", f"/v1/runs/{forged}/close", f"/{forged}?{forged}"):
            for method in ("GET", "POST"):
                headers = bearer("rpl_swordfish") | {"content-type": "application/json"}
                response = httpx2.request(method, base_url + path, headers=headers)
                assert response.status_code in (404, 405)
    assert [line for line in lines_of(root) if line.get("who") == "chief"] == []
    assert "swordfish" not in (root / "serve.log").read_text()


def test_the_audit_does_not_depend_on_the_level_of_the_log(root: Path) -> None:
    token = make_token(root, "train", "trainer-7")
    with (
        running_service(root, options=["--log-level", "error"]) as (base_url, _),
        httpx2.Client(base_url=base_url, headers=bearer(token)) as client,
    ):
        create_run(client)
        ask(client)
    lines = [each for each in lines_of(root) if each["event"] == "audit"]
    assert [(each["who"], each["status"], each["client"]) for each in lines] == [
        ("trainer-7", 201, "127.0.0.1"),
        ("trainer-7", 200, "127.0.0.1"),
    ]
    assert token not in (root / "serve.log").read_text()


SECRETS = {
    "database_url": "postgresql+psycopg://replay:swordfish@127.0.0.1:1/replay",
    "corpora_url": "s3://key:swordfish@bucket/corpora?secret_key=swordfish",
    "ingest_from": ("s3://key:swordfish@bucket/web",),
}


@pytest.mark.parametrize("name", SECRETS)
def test_what_the_settings_hold_of_secrets_is_not_in_their_representation(name: str) -> None:
    settings = load_settings(**{name: SECRETS[name]})
    assert "swordfish" not in repr(settings) + str(settings)
    with pytest.raises(ValueError, match="port") as refusal:
        load_settings(**{name: SECRETS[name], "port": -1})
    assert "swordfish" not in str(refusal.value)


def test_a_wrong_setting_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="database_url") as refusal:
        load_settings(database_url="swordfish")
    assert "swordfish" not in str(refusal.value)


def test_a_service_that_cannot_reach_its_database_does_not_tell_the_password(root: Path) -> None:
    with (
        pytest.raises(AssertionError, match="the service stopped"),
        running_service(root, database_url=SECRETS["database_url"]),
    ):
        pass
    log = (root / "serve.log").read_text()
    assert "Connection refused" in log or "connection failed" in log
    assert "swordfish" not in log


def test_a_service_that_cannot_reach_its_corpora_does_not_tell_the_key(root: Path) -> None:
    url = "nosuch://key:swordfish@bucket/corpora?secret=swordfish"
    with capture_logs() as logs, pytest.raises(CorpusError) as refusal, client_on(root, corpora_url=url):
        pass
    assert "swordfish" not in str(logs) + str(refusal.value)
