import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from replay_service.gateway.app import create_app
from replay_service.gateway.middleware.problems import SAFE_HEADERS
from replay_service.settings import load_settings
from tests.gateway.worlds import all_of, ask, assert_problem, bearer, client_on, make_token


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8400", "localhost:1", "LOCALHOST", "[::1]:8400", "127.9.9.9"])
def test_a_service_on_loopback_answers_to_the_names_of_loopback(client: TestClient, host: str) -> None:
    assert client.get("/v1/runs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8400", "localhost.evil.example", "192.0.2.1", "", "[::1", "x@127.0.0.1", "0.0.0.0"],
)
def test_a_service_on_loopback_answers_to_no_other_name(client: TestClient, host: str) -> None:
    """A page that was led to 127.0.0.1 by its own name reads and changes nothing."""
    for method, path in (("GET", "/v1/runs"), ("POST", "/v1/runs"), ("GET", "/docs")):
        assert_problem(client.request(method, path, headers={"host": host}), 421, "host-not-allowed")


@pytest.mark.parametrize(
    ("method", "path", "host"),
    [
        ("GET", "/v1/runs", "localhost"),
        ("GET", "/v1/nothing", "localhost"),
        ("POST", "/v1/runs", "localhost"),
        ("DELETE", "/v1/runs", "localhost"),
        ("GET", "/v1/runs", "evil.example"),
        ("GET", "/healthz", "localhost"),
    ],
)
def test_every_answer_has_each_safety_header_once(client: TestClient, method: str, path: str, host: str) -> None:
    answer = client.request(method, path, headers={"host": host})
    for name, value in SAFE_HEADERS.items():
        assert answer.headers.get_list(name) == [value]


def test_a_service_beyond_loopback_answers_to_every_name_unless_told_otherwise(root: Path) -> None:
    with client_on(root, host="0.0.0.0") as client:
        assert client.get("/v1/runs", headers={"host": "replay.example.org"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "is_answered"),
    [
        ("replay.example.org", True),
        ("REPLAY.example.org:443", True),
        ("a.internal", True),
        ("a.b.internal", True),
        ("internal", False),
        ("notinternal", False),
        ("127.0.0.1", True),
        ("10.0.0.7:8400", True),
        ("[fd00::7]:8400", True),
        ("10.0.0.7.example.org", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_names_that_are_set_are_answered_and_addresses_and_no_others(root: Path, host: str, is_answered: bool) -> None:
    for listens_on in ("127.0.0.1", "0.0.0.0"):
        with client_on(root, host=listens_on, allowed_hosts=("Replay.example.org", "*.internal")) as client:
            assert (client.get("/v1/runs", headers={"host": host}).status_code == 200) == is_answered


def test_every_name_can_be_allowed(root: Path) -> None:
    with client_on(root, allowed_hosts=("*",)) as client:
        assert client.get("/v1/runs", headers={"host": "any.example"}).status_code == 200


def test_health_is_told_under_any_name(client: TestClient) -> None:
    for path in ("/healthz", "/readyz"):
        assert client.get(path, headers={"host": "10.0.0.7:8400"}).status_code == 200


def test_no_answer_is_guessed_at_or_kept_on_the_way(root: Path, running: TestClient) -> None:
    token = make_token(root, "read")
    with client_on(root) as guarded:
        answers = [
            running.get("/v1/runs"),
            ask(running),
            running.get("/healthz"),
            running.get("/docs"),
            running.get("/nope"),
            running.post("/v1/runs", json={}),
            running.get("/v1/runs", headers={"host": "evil.example"}),
            guarded.get("/v1/runs"),
            guarded.post("/v1/runs", json={}, headers=bearer(token)),
        ]
    assert {each.status_code for each in answers} >= {200, 401, 403, 404, 421, 422}
    (root / "corpora" / "wiki" / "manifest.json").write_text("[]")
    for answer in (*answers, running.get("/v1/corpora/wiki")):
        assert answer.headers["x-content-type-options"] == "nosniff", answer.url
        assert answer.headers["cache-control"] == "no-store", answer.url
        assert "access-control-allow-origin" not in answer.headers


def test_an_answer_to_what_was_not_foreseen_is_safe_too(root: Path, running: TestClient) -> None:
    manifest = root / "corpora" / "wiki" / "manifest.json"
    content = json.loads(manifest.read_text())
    for segment in content["segments"][1:]:
        segment["num_rows"] = 1
    manifest.write_text(json.dumps(content))
    response = ask(running, num_steps=5)
    assert response.status_code == 500
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"


FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "")
CHANGES: list[tuple[str, str, dict[str, object]]] = [
    ("POST", "/v1/runs", {"run": "mine", "corpus": "wiki", "global_batch_size": 8, "injection_ratio": "0.3"}),
    ("POST", "/v1/runs/tune/batches", {"step": 0}),
    ("POST", "/v1/runs/tune/losses", {"rows": []}),
    (
        "POST",
        "/v1/runs/tune/trained",
        {
            "rank": 0,
            "first_step": 0,
            "next_step": 1,
            "num_rows": 1,
            "num_rehearsed_rows": 0,
            "num_tokens": 1,
            "num_rehearsed_tokens": 0,
        },
    ),
    ("POST", "/v1/runs/tune/rewind", {"step": -1}),
    ("POST", "/v1/runs/tune/adopt", {}),
    ("POST", "/v1/runs/tune/close", {}),
    ("POST", "/v1/runs/tune/finish", {"num_steps": 5}),
    ("POST", "/v1/runs/tune/claim", {"job": "a-job"}),
    ("POST", "/v1/runs/tune/release", {"job": "a-job"}),
    ("PATCH", "/v1/runs/tune", {"floor": 0.2}),
    ("POST", "/v1/corpora", {"corpus": "mine", "source": "/data", "model": "m"}),
]


def test_every_change_that_takes_a_body_is_tried() -> None:
    paths = create_app(load_settings()).openapi()["paths"]
    found = {(method.upper(), path) for path, each in paths.items() for method in each if method in ("post", "patch")}
    assert found == {(method, path.replace("tune", "{run}")) for method, path, _ in CHANGES}


@pytest.mark.parametrize("content_type", FORM_TYPES)
def test_nothing_that_a_form_can_send_changes_anything(running: TestClient, content_type: str) -> None:
    """A page of another site can make a browser send it, without asking the service first."""
    before = all_of(running)
    for method, path, body in CHANGES:
        response = running.request(method, path, content=json.dumps(body), headers={"content-type": content_type})
        assert response.status_code in (415, 422), (method, path)
    assert running.post("/v1/runs/tune/close").status_code == 422
    assert all_of(running) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9"},
    ],
)
def test_a_page_of_another_site_changes_nothing(running: TestClient, headers: dict[str, str]) -> None:
    before = all_of(running)
    for method, path, body in CHANGES:
        assert_problem(running.request(method, path, json=body, headers=headers), 403, "cross-site")
    assert_problem(running.delete("/v1/runs/tune", headers=headers), 403, "cross-site")
    assert all_of(running) == before
    assert running.get("/v1/runs/tune", headers=headers).status_code == 200, "it cannot read the answer"


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1"}, {}])
def test_a_page_of_the_service_and_a_program_may_change_something(running: TestClient, headers: dict[str, str]) -> None:
    assert running.patch("/v1/runs/tune", json={"floor": 0.2}, headers=headers).status_code == 200
