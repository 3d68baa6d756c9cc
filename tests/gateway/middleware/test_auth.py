from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from replay_service.gateway.app import create_app
from replay_service.gateway.middleware.access import OPEN_PATHS
from replay_service.settings import load_settings
from replay_service.tokens import SCOPES, Scope, UnusableTokens, revoke_token
from tests.gateway.worlds import assert_problem, bearer, client_on, create_run, make_token

Route = tuple[str, str, Scope]


def described() -> dict[str, Any]:
    return create_app(load_settings()).openapi()


def routes() -> list[Route]:
    """Every path that asks for a token, with its method and the scope that it states."""
    found: list[Route] = []
    for path, operations in described()["paths"].items():
        for method, operation in operations.items():
            if path not in OPEN_PATHS:
                ((scope,),) = (each["token"] for each in operation["security"])
                found.append((path, method.upper(), cast(Scope, scope)))
    return found


def named(path: str, run: str = "tune") -> str:
    return path.replace("{run}", run).replace("{corpus}", "wiki").replace("{sample_id}", "5")


@pytest.fixture
def admin(root: Path) -> dict[str, str]:
    """The headers of somebody who may do everything."""
    return bearer(make_token(root, "admin", "chief"))


@pytest.fixture
def guarded(root: Path, admin: dict[str, str]) -> Iterator[TestClient]:
    """A client, without a token of its own, of a service that asks for them and has the runs `tune` and `other`."""
    with client_on(root) as client:
        for run in ("tune", "other"):
            body = {"run": run, "corpus": "wiki", "global_batch_size": 8, "injection_ratio": "0.3"}
            assert client.post("/v1/runs", json=body, headers=admin).status_code == 201
        yield client


def test_every_route_states_its_scope_and_openapi_has_the_scheme() -> None:
    for path, method, scope in routes():
        is_for_admins = method == "DELETE" or (path.startswith("/v1/corpora") and method != "GET")
        assert scope == ("read" if method == "GET" else "admin" if is_for_admins else "train"), (path, method)
    assert {"401", "403"} <= set(described()["paths"]["/v1/runs"]["get"]["responses"])
    assert described()["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_every_route_refuses_who_has_no_token(guarded: TestClient) -> None:
    for path, method, _ in routes():
        response = guarded.request(method, named(path))
        assert_problem(response, 401, "missing-token")
        assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "path", ["/docs", "/redoc", "/openapi.json", "/v1/nope", "/", "/healthz/", "//healthz", "/HEALTHZ"]
)
def test_what_is_no_route_of_the_api_refuses_who_has_no_token_too(guarded: TestClient, path: str) -> None:
    for method in ("GET", "POST", "HEAD", "OPTIONS"):
        assert guarded.request(method, path).status_code == 401


def test_every_route_refuses_a_scope_that_is_too_small(root: Path, guarded: TestClient) -> None:
    headers = {scope: bearer(make_token(root, scope, scope)) for scope in SCOPES}
    for path, method, scope in routes():
        for smaller in SCOPES[: SCOPES.index(scope)]:
            content = assert_problem(guarded.request(method, named(path), headers=headers[smaller]), 403)
            assert content["type"].endswith("scope-too-small"), (path, method, smaller)
            assert f"--scope {scope}" in content["detail"]


def test_every_route_serves_the_scope_that_it_states_and_larger_ones(root: Path, guarded: TestClient) -> None:
    headers = {scope: bearer(make_token(root, scope, scope)) for scope in SCOPES}
    for path, method, scope in routes():
        for enough in SCOPES[SCOPES.index(scope) :]:
            response = guarded.request(method, named(path), headers=headers[enough])
            assert response.status_code not in (401, 403), (path, method, enough)


@pytest.mark.parametrize("run", ["tune", "never-made"])
def test_every_route_of_a_run_refuses_the_token_of_another_run(root: Path, guarded: TestClient, run: str) -> None:
    headers = bearer(make_token(root, "admin", runs=("other",)))
    bodies: dict[str, dict[str, Any]] = {
        "/v1/runs/{run}/batches": {"step": 0},
        "/v1/runs/{run}/rewind": {"step": 0},
        "/v1/runs/{run}/adopt": {},
        "/v1/runs/{run}/close": {},
        "/v1/runs/{run}/losses": {"rows": []},
        "/v1/runs/{run}": {"floor": 0.2},
    }
    for path, method, _ in routes():
        if "{run}" in path:
            body = None if method == "GET" else bodies.get(path)
            response = guarded.request(method, named(path, run), headers=headers, json=body)
            assert_problem(response, 403, "run-forbidden")
    body = {"run": run, "corpus": "wiki", "global_batch_size": 8, "injection_ratio": "0.3"}
    assert_problem(guarded.post("/v1/runs", json=body, headers=headers), 403, "run-forbidden")


def test_the_token_of_some_runs_sees_these_alone_and_every_corpus(root: Path, guarded: TestClient) -> None:
    headers = bearer(make_token(root, "train", runs=("other", "not-yet")))
    listed = guarded.get("/v1/runs", headers=headers).json()["runs"]
    assert [each["run"] for each in listed] == ["other"]
    assert guarded.get("/v1/runs/other/stats", headers=headers).status_code == 200
    body = {"run": "not-yet", "corpus": "wiki", "global_batch_size": 8, "injection_ratio": "0.3"}
    assert guarded.post("/v1/runs", json=body, headers=headers).status_code == 201
    assert [each["corpus"] for each in guarded.get("/v1/corpora", headers=headers).json()["corpora"]] == ["wiki"]
    assert guarded.get("/v1/corpora/wiki", headers=headers).status_code == 200


def test_a_name_that_is_none_is_unknown_to_every_token(root: Path, guarded: TestClient) -> None:
    headers = bearer(make_token(root, "admin", runs=("other",)))
    assert_problem(guarded.get("/v1/runs/No%20Name", headers=headers), 404, "unknown-run")
    assert_problem(guarded.get("/v1/corpora/No%20Name", headers=headers), 404, "unknown-corpus")


def test_health_is_told_to_anybody(guarded: TestClient) -> None:
    for path in OPEN_PATHS:
        assert guarded.get(path).json() == {"status": "ok"}


def test_the_api_is_described_to_who_may_read(root: Path, guarded: TestClient) -> None:
    headers = bearer(make_token(root, "read"))
    assert guarded.get("/docs", headers=headers).status_code == 200
    assert guarded.get("/openapi.json", headers=headers).json()["paths"]


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer rpl_unknown",
        "Basic {token}",
        "{token}",
        "Bearer {token}x",
        "Bearer rpl_",
        "Bearer \xff",
    ],
)
def test_a_header_without_a_token_in_force_is_refused(root: Path, guarded: TestClient, header: str) -> None:
    value = header.replace("{token}", make_token(root, "admin")).encode("latin-1")
    response = guarded.get("/v1/runs", headers=[(b"authorization", value)])
    assert_problem(response, 401, "invalid-token")
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


def test_two_headers_are_refused(root: Path, guarded: TestClient) -> None:
    value = f"Bearer {make_token(root, 'admin')}".encode()
    response = guarded.get("/v1/runs", headers=[(b"authorization", value), (b"authorization", value)])
    assert_problem(response, 401, "invalid-token")


def test_the_kind_of_header_may_be_written_in_any_case(root: Path, guarded: TestClient) -> None:
    token = make_token(root, "read")
    assert guarded.get("/v1/runs", headers={"authorization": f"bEARER  {token}"}).status_code == 200


def test_a_token_is_good_until_it_expires(root: Path, guarded: TestClient) -> None:
    now = datetime.now(UTC)
    over = bearer(make_token(root, "admin", "over", expires_at=now - timedelta(seconds=5)))
    good = bearer(make_token(root, "admin", "good", expires_at=now + timedelta(days=1)))
    assert "expired at" in assert_problem(guarded.get("/v1/runs", headers=over), 401, "invalid-token")["detail"]
    assert guarded.get("/v1/runs", headers=good).status_code == 200


def test_tokens_come_and_go_while_the_service_runs(root: Path, guarded: TestClient) -> None:
    headers = bearer(make_token(root, "read", "late"))
    assert guarded.get("/v1/runs", headers=headers).status_code == 200
    revoke_token(root / "tokens.toml", "late")
    assert_problem(guarded.get("/v1/runs", headers=headers), 401, "invalid-token")


@pytest.mark.parametrize("damage", ["[[token]", "", 'token = "all"', '[[token]]\nname = "somebody"', None])
def test_a_damaged_file_opens_nothing(
    root: Path, guarded: TestClient, admin: dict[str, str], damage: str | None
) -> None:
    path = root / "tokens.toml"
    good = path.read_text()
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage)
    with capture_logs() as logs:
        assert guarded.get("/v1/runs").status_code == 401
        assert_problem(guarded.get("/v1/runs", headers=bearer("rpl_")), 401, "invalid-token")
    assert [each["log_level"] for each in logs] == ["warning"], "it is said once"
    assert guarded.get("/v1/runs", headers=admin).status_code == 200, "the last good file stays in force"
    path.write_text(good)
    assert guarded.get("/v1/runs", headers=admin).status_code == 200


def test_a_file_without_tokens_lets_nobody_in(root: Path, guarded: TestClient, admin: dict[str, str]) -> None:
    (root / "tokens.toml").write_text("# nobody")
    assert guarded.get("/v1/runs", headers=admin).status_code == 401
    assert guarded.get("/v1/runs").status_code == 401


@pytest.mark.parametrize("content", ["[[token]", None])
def test_a_service_does_not_start_without_the_tokens_that_it_was_given(root: Path, content: str | None) -> None:
    path = root / "mine.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UnusableTokens, match=r"mine\.toml"), client_on(root, tokens_file=path):
        pass


def test_a_file_that_others_can_read_is_warned_of(root: Path) -> None:
    make_token(root, "read")
    with capture_logs() as logs, client_on(root):
        assert [each["log_level"] for each in logs] == ["info"]
    (root / "tokens.toml").chmod(0o640)
    with capture_logs() as logs, client_on(root):
        assert "chmod 600" in logs[0]["event"]


def test_nobody_is_asked_where_there_are_no_tokens(client: TestClient) -> None:
    assert create_run(client).status_code == 201
    assert client.get("/v1/runs", headers=bearer("rpl_whatever")).status_code == 200


def test_who_has_no_token_is_refused_before_the_body_is_looked_at(root: Path) -> None:
    make_token(root, "admin")
    with client_on(root, max_body_bytes=1024) as client:
        for body in (b"{", b"x" * 2000):
            response = client.post("/v1/runs", content=body, headers={"content-type": "application/json"})
            assert_problem(response, 401, "missing-token")
