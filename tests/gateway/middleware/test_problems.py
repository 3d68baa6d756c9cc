import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from replay_service import errors
from replay_service.gateway.app import create_app
from replay_service.settings import load_settings
from tests.gateway.worlds import ask, assert_problem, client_on

AS_JSON = {"content-type": "application/json"}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
UNKNOWN_NAMES = ("nobody", "A%20B", "%00", "..", "x" * 300, "%ED%A0%80", "%F0%9F%90%88")


def routes() -> list[tuple[str, str]]:
    """Every path of the API with its method."""
    paths = create_app(load_settings()).openapi()["paths"]
    return [(path, method.upper()) for path, operations in paths.items() for method in operations]


def named(path: str, name: str) -> str:
    return path.replace("{run}", name).replace("{corpus}", name).replace("{sample_id}", "5")


def subclasses(kind: type[errors.ReplayError]) -> Iterator[type[errors.ReplayError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from subclasses(each)


COUNTS = ("num_rows", "num_rehearsed_rows", "num_tokens", "num_rehearsed_tokens")


def body_of(path: str, method: str) -> dict[str, Any] | None:
    """A good body for a route, or None if it takes none."""
    bodies: dict[str, dict[str, Any]] = {
        "/v1/runs": {"run": "tune", "corpus": "wiki", "global_batch_size": 8, "injection_ratio": "0.5"},
        "/v1/runs/{run}": {"floor": 0.2},
        "/v1/runs/{run}/batches": {"step": 0},
        "/v1/runs/{run}/losses": {"rows": []},
        "/v1/runs/{run}/trained": {"rank": 0, "first_step": 0, "next_step": 1} | dict.fromkeys(COUNTS, 0),
        "/v1/runs/{run}/rewind": {"step": 0},
        "/v1/runs/{run}/adopt": {},
        "/v1/runs/{run}/close": {},
        "/v1/runs/{run}/finish": {"num_steps": 5},
        "/v1/runs/{run}/claim": {"job": "a-job"},
        "/v1/runs/{run}/release": {"job": "a-job"},
    }
    return None if method in ("GET", "DELETE") else bodies.get(path)


@pytest.mark.parametrize("name", UNKNOWN_NAMES)
def test_every_route_answers_an_unknown_name_with_a_problem(client: TestClient, name: str) -> None:
    for path, method in routes():
        if "{" in path:
            assert_problem(client.request(method, named(path, name), json=body_of(path, method)), 404)


def test_every_route_answers_a_body_that_is_no_json_with_a_problem(client: TestClient) -> None:
    for path, method in routes():
        if body_of(path, method) is not None:
            response = client.request(method, named(path, "nobody"), content=b"{", headers=AS_JSON)
            assert_problem(response, 422, "invalid-request")


def test_every_route_answers_another_method_with_a_problem(client: TestClient) -> None:
    allowed: dict[str, set[str]] = {}
    for path, method in routes():
        allowed.setdefault(path, set()).add(method)
    for path, known in allowed.items():
        for method in set(METHODS) - known:
            response = client.request(method, named(path, "wiki"))
            assert_problem(response, 405, "method-not-allowed")
            assert set(response.headers["allow"].split(", ")) == known


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v2/runs", "/v1/runs/a/b/c", "/v1/runs/tune/plans", "/%00"])
def test_an_unknown_path_is_a_problem(client: TestClient, path: str) -> None:
    for method in METHODS:
        assert_problem(client.request(method, path), 404, "not-found")


def test_an_error_names_its_kind_what_was_wrong_and_its_extensions(client: TestClient) -> None:
    assert client.get("/v1/runs/nobody").json() == {
        "type": "urn:replay-service:problem:unknown-run",
        "title": "There is no such run",
        "status": 404,
        "detail": "there is no run 'nobody'; GET /v1/runs lists them, POST /v1/runs creates one",
    }


def test_many_wrong_fields_are_all_named(client: TestClient) -> None:
    content = assert_problem(client.post("/v1/runs", json={"a": 1, "b": 2}), 422, "invalid-request")
    fields = {each["field"] for each in content["errors"]}
    assert fields == {f"body.{name}" for name in ("a", "b", "run", "corpus", "global_batch_size", "injection_ratio")}


def test_an_unexpected_exception_is_a_problem_that_gives_nothing_away(root: Path, running: TestClient) -> None:
    manifest = root / "corpora" / "wiki" / "manifest.json"
    content = json.loads(manifest.read_text())
    for segment in content["segments"][1:]:
        segment["num_rows"] = 1
    with capture_logs() as logs:
        manifest.write_text(json.dumps(content))
        response = ask(running, num_steps=5)
    content = assert_problem(response, 500, "internal-error")
    assert content["detail"] == "the service failed; its log says why"
    for secret in (str(root), "IndexError", "such rows", "Traceback"):
        assert secret not in response.text
    (entry,) = logs
    assert (entry["event"], entry["path"]) == ("unexpected error", "/v1/runs/tune/batches")
    assert isinstance(entry["exc_info"], Exception)
    assert running.get("/v1/runs/tune").status_code == 200


def test_a_request_over_the_limit_is_a_problem_on_every_route(root: Path) -> None:
    with client_on(root, max_body_bytes=1024) as client:
        for path, method in routes():
            if body_of(path, method) is not None:
                response = client.request(method, named(path, "nobody"), content=b"x" * 2000, headers=AS_JSON)
                assert_problem(response, 413, "body-too-large")


def test_every_kind_of_error_has_a_name_of_its_own_and_a_place_in_the_tree() -> None:
    kinds = [kind for kind in subclasses(errors.ReplayError) if kind.__module__ == errors.__name__]
    assert len({kind.slug for kind in kinds}) == len({kind.title for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or "")
        assert kind.status in (*range(400, 500), 503) or kind in (errors.ReplayError, errors.JournalDamaged)
