import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from replay_service.tokens import revoke_token
from tests.gateway.worlds import RUN, assert_problem, bearer, client_on, make_token

HTML = {"accept": "text/html"}
OWN = {"origin": "http://127.0.0.1"}
COOKIE = "replay-token"


@pytest.fixture
def token(root: Path) -> str:
    return make_token(root, "train", "chief")


@pytest.fixture
def guarded(root: Path, token: str) -> Iterator[TestClient]:
    """A client that has not logged in, of a service with the run `tune` that asks for tokens."""
    with client_on(root) as client:
        assert client.post("/v1/runs", json=RUN, headers=bearer(token)).status_code == 201
        client.follow_redirects = False
        yield client


def log_in(client: TestClient, token: str, target: str = "/", **headers: str):  # type: ignore[no-untyped-def]
    return client.post("/login", data={"token": token, "target": target}, headers=OWN | headers)


def test_a_browser_without_a_token_gets_the_form_and_a_program_a_problem(guarded: TestClient) -> None:
    page = guarded.get("/runs/tune", headers=HTML)
    assert page.status_code == 401
    assert 'action="/login"' in page.text and 'value="/runs/tune"' in page.text
    assert page.headers["www-authenticate"].startswith("Bearer")
    assert_problem(guarded.get("/runs/tune"), 401, "missing-token")
    assert_problem(guarded.get("/v1/runs", headers=HTML), 401, "missing-token")


def test_a_token_is_posted_once_and_the_cookie_bears_it(guarded: TestClient, token: str) -> None:
    answer = log_in(guarded, token, "/runs/tune?x=1")
    assert answer.status_code == 303 and answer.headers["location"] == "/runs/tune?x=1"
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {each.strip() for each in cookie.split(";")}
    assert "Secure" not in cookie and "max-age" not in cookie.lower()
    assert guarded.get("/runs/tune", headers=HTML).status_code == 200
    assert guarded.get("/v1/runs").json()["runs"][0]["run"] == "tune"
    assert guarded.get("/docs", headers=HTML).status_code == 200


def test_over_https_the_cookie_never_goes_out_in_the_clear(root: Path, token: str) -> None:
    with client_on(root) as client:
        client.base_url = "https://127.0.0.1"
        answer = client.post(
            "/login", data={"token": token}, headers={"origin": "https://127.0.0.1"}, follow_redirects=False
        )
        assert answer.headers["set-cookie"].startswith(f"__Host-{COOKIE}=")
        assert "Secure" in answer.headers["set-cookie"]
        assert client.get("/", headers=HTML).status_code == 200
        assert client.get("http://127.0.0.1/", headers=HTML).status_code == 401


def test_services_on_two_ports_of_a_host_have_a_cookie_each(root: Path, token: str) -> None:
    with client_on(root) as client:
        for port in (8400, 8500):
            client.base_url = f"http://127.0.0.1:{port}"
            own = {"origin": f"http://127.0.0.1:{port}"}
            answer = client.post("/login", data={"token": token}, headers=own, follow_redirects=False)
            assert answer.headers["set-cookie"].startswith(f"{COOKIE}-{port}=")
        assert client.post("/logout", headers=own, follow_redirects=False).status_code == 303
        assert client.get("/", headers=HTML).status_code == 401
        assert client.get("http://127.0.0.1:8400/", headers=HTML).status_code == 200


def test_a_wrong_token_is_refused_and_sets_no_cookie(guarded: TestClient) -> None:
    for wrong in ("", "rpl_unknown", "<script>alert(1)</script>", "x\r\nSet-Cookie: a=b", "é" * 5000):
        answer = log_in(guarded, wrong)
        assert answer.status_code == 401 and "set-cookie" not in answer.headers
        assert "does not know the token" in answer.text and "<script>alert" not in answer.text


def test_a_revoked_token_lets_no_cookie_in(root: Path, guarded: TestClient, token: str) -> None:
    log_in(guarded, token)
    make_token(root, "admin", "other")
    revoke_token(root / "tokens.toml", "chief")
    page = guarded.get("/", headers=HTML)
    assert page.status_code == 401 and "revoked" in page.text
    assert_problem(guarded.get("/v1/runs"), 401, "invalid-token")


def test_a_cookie_may_do_what_its_token_may(root: Path, guarded: TestClient) -> None:
    log_in(guarded, make_token(root, "read", "reader"))
    assert_problem(guarded.post("/v1/runs/tune/close", json={}, headers=OWN), 403, "scope-too-small")
    assert guarded.get("/runs/tune/change?action=close", headers=HTML).status_code == 403
    assert "Changes take a token with the scope" in guarded.get("/runs/tune", headers=HTML).text
    log_in(guarded, make_token(root, "train", "narrow", ("other",)))
    forbidden = guarded.get("/runs/tune", headers=HTML)
    assert forbidden.status_code == 403 and "is not for run" in forbidden.text
    assert "/runs/tune" not in guarded.get("/", headers=HTML).text


def test_the_header_comes_before_the_cookie(root: Path, guarded: TestClient, token: str) -> None:
    log_in(guarded, token)
    assert_problem(guarded.get("/v1/runs", headers=bearer("rpl_unknown")), 401, "invalid-token")


FOREIGN: tuple[dict[str, str], ...] = (
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {},
)


def test_a_change_with_a_cookie_or_a_form_says_that_it_comes_from_a_page_of_ours(
    guarded: TestClient, token: str
) -> None:
    log_in(guarded, token)
    for path in ("/login", "/logout", "/runs/tune/change", "/v1/runs/tune/close"):
        body: dict[str, Any] = {"json": {}} if path.startswith("/v1") else {"data": {"action": "close"}}
        for headers in FOREIGN:
            assert_problem(guarded.post(path, headers=headers, **body), 403, "cross-site")
    assert not guarded.get("/v1/runs/tune").json()["closed"]


def test_a_form_is_refused_from_elsewhere_where_nobody_needs_a_token(running: TestClient) -> None:
    form = {"action": "close", "confirm": "tune"}
    foreign = running.post("/runs/tune/change", data=form, headers={"origin": "http://evil.example"})
    assert_problem(foreign, 403, "cross-site")
    silent = running.post("/runs/tune/change", data=form)
    assert silent.status_code == 403 and "must say its Origin" in silent.text
    assert not running.get("/v1/runs/tune").json()["closed"]


def test_logging_out_takes_the_cookie_away(guarded: TestClient, token: str) -> None:
    log_in(guarded, token)
    answer = guarded.post("/logout", headers=OWN)
    assert answer.status_code == 303
    assert guarded.get("/", headers=HTML).status_code == 401


ELSEWHERE = (
    "//evil.example",
    "https://evil.example/",
    "/\\evil.example",
    "\\\\evil.example",
    "javascript:alert(1)",
    "",
    "evil.example",
    "/a\r\nX: y",
    "//[",
    " //evil.example",
)


def test_nobody_is_led_elsewhere(guarded: TestClient, token: str) -> None:
    for target in ELSEWHERE:
        assert log_in(guarded, token, target).headers["location"] == "/", target


def test_no_token_is_in_the_log_or_in_a_page(guarded: TestClient, token: str) -> None:
    with capture_logs() as logs:
        pages = [log_in(guarded, token), log_in(guarded, token + "x"), guarded.get("/", headers=HTML)]
        pages.append(guarded.get("/runs/tune", headers=HTML))
    assert token not in str(logs) and all(token not in each.text for each in pages)
    assert {"who": "chief", "route": "/login", "status": 303}.items() <= logs[0].items()
    assert {"route": "/login", "status": 401}.items() <= logs[1].items()


def test_a_cookie_that_is_none_of_ours_lets_nobody_in(guarded: TestClient) -> None:
    for cookie in ("=", ";;;", f"{COOKIE}", f"{COOKIE}=", f'{COOKIE}="', f"{COOKIE}={'x' * 5000}"):
        assert guarded.get("/v1/runs", headers={"cookie": cookie}).status_code == 401


def test_what_is_no_form_is_refused(guarded: TestClient) -> None:
    for body, kind in ((b"{}", "application/json"), (b"a=1&" * 50, None), (b"\xff=%ff", None)):
        headers = OWN | HTML | {"content-type": kind or "application/x-www-form-urlencoded"}
        answer = guarded.post("/login", content=body, headers=headers)
        assert answer.status_code in (401, 422)
        assert re.search("form|token", answer.text)
