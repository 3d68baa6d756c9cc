"""Pages without a browser: what they say, and that nothing in them runs."""

import gzip
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from replay_service.gateway.app import create_app
from replay_service.gateway.page import words
from replay_service.gateway.page.rendering import POLICY
from replay_service.gateway.page.run_log import speed_of
from replay_service.gateway.statistics_models import ForgettingEstimate
from replay_service.settings import load_settings
from replay_service.testing.corpus import MadeUpCorpus
from tests.gateway.page.worlds import a_sample, runs_in, text_of, train
from tests.gateway.worlds import RUN, batch_of, bearer, client_on, create_run, make_token
from tests.support import make_corpus

HTML = {"accept": "text/html"}
PATHS = (
    "/",
    "/?state=running",
    "/runs/tune",
    "/runs/tune/live",
    "/runs/tune/strata",
    "/runs/tune/samples/{sample}",
    "/runs/tune/change?action=injection_ratio&value=0.5",
    "/runs/tune/change?action=policy&value=uniform",
    "/runs/tune/change?action=rewind&value=2",
    "/runs/tune/change?action=close",
    "/runs/tune/change?action=nothing",
    "/runs/nobody",
    "/corpora",
    "/corpora/wiki",
    "/corpora/nothing",
    "/docs",
    "/login",
)


class Elements(HTMLParser):
    """The start tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_no_page_holds_anything_that_the_policy_forbids(trained: TestClient) -> None:
    sample = str(a_sample(trained))
    for path in PATHS:
        assert_holds_to_the_policy(trained.get(path.replace("{sample}", sample), headers=HTML))


def assert_holds_to_the_policy(answer: httpx2.Response) -> None:
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].replace(" data:", "") == POLICY
    assert answer.headers["cache-control"] == "no-store"
    for tag, attributes in Elements(answer.text).found:
        assert tag != "style" and "style" not in attributes, (tag, attributes)
        assert not any(name.startswith(("on", "hx-on", "hx-vals", "hx-headers")) for name in attributes), attributes
        assert tag not in ("script", "iframe", "object", "base") or (attributes.get("src") or "").startswith("/assets/")
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "/").startswith(("/", "#")), attributes


def test_nothing_else_may_run_or_be_loaded() -> None:
    rules = dict(each.strip().split(" ", 1) for each in POLICY.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
    assert {rules[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {"'self'"}


def test_every_page_asks_for_a_token_where_there_are_tokens(root: Path) -> None:
    make_token(root, "read")
    with client_on(root) as client:
        for path in PATHS:
            answer = client.get(path.replace("{sample}", "1"), headers=HTML)
            assert answer.status_code == (200 if path == "/login" else 401), path
            assert "Log in" in text_of(answer.text) and "wiki" not in text_of(answer.text), path


def test_pages_are_no_part_of_the_api() -> None:
    paths = create_app(load_settings()).openapi()["paths"]
    assert all(each.startswith("/v1/") or each in ("/healthz", "/readyz", "/metrics") for each in paths)


def test_a_page_is_compressed_for_who_takes_that(trained: TestClient) -> None:
    with trained.stream("GET", "/runs/tune", headers={"accept-encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip" and b"<h1>tune</h1>" in gzip.decompress(raw)
    plain = trained.get("/runs/tune", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and "<h1>tune</h1>" in plain.text


def test_a_page_says_what_the_json_routes_say(trained: TestClient) -> None:
    stats = trained.get("/v1/runs/tune/stats").json()
    page = text_of(trained.get("/runs/tune").text)
    assert f"{stats['rows_rehearsed']} / {words.count(stats['rows_due'])}" in page
    assert stats["forgetting"]["reason"] in page and stats["state"] in page
    for each in stats["advice"]:
        assert each["text"] in page and each["remedy"] in page
    (sample,) = trained.get("/v1/runs/tune/samples?limit=1").json()["samples"]
    assert str(sample["sample_id"]) in page


def test_the_list_filters_by_state_and_goes_on_page_by_page(
    running: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        create_run(running, run=f"more-{i}")
    batch_of(running, 0)
    assert runs_in(running.get("/?state=running").text) == ["tune"]
    assert runs_in(running.get("/?state=waiting").text) == ["more-0", "more-1", "more-2"]
    assert "no further runs in the state closed" in text_of(running.get("/?state=closed").text)
    monkeypatch.setattr("replay_service.gateway.page.run_list.RUNS_SHOWN", 2)
    first = running.get("/").text
    assert runs_in(first) == ["more-0", "more-1"]
    (following,) = re.findall(r'rel="next" href="([^"]+)"', first)
    assert runs_in(running.get(following).text) == ["more-2", "tune"]


def test_a_run_that_cannot_be_read_hides_no_other(root: Path, running: TestClient) -> None:
    make_corpus(root / "corpora", "other")
    create_run(running, run="second", corpus="other")
    batch_of(running, 0)
    (root / "corpora" / "other" / "manifest.json").write_text("{")
    page = running.get("/").text
    assert runs_in(page) == ["second", "tune"]
    assert running.get("/runs/second").status_code == 200


def test_an_empty_service_says_what_to_do(tmp_path: Path) -> None:
    with client_on(tmp_path) as client:
        assert "There are no runs yet" in client.get("/").text
        assert "There are no corpora yet" in client.get("/corpora").text


def test_what_goes_wrong_is_said_as_a_page(running: TestClient) -> None:
    for path, status, said in (
        ("/?state=nope", 422, "there is no state"),
        ("/?statee=running", 422, "no such key"),
        ("/runs/nobody", 404, "there is no run"),
        ("/runs/No%20Name", 404, "there is no run"),
        ("/runs/tune?x=1", 422, "no such key"),
        ("/runs/tune/samples/77", 404, "nothing was reported of sample 77"),
        ("/runs/tune/samples/x", 422, "valid integer"),
        ("/runs/tune/change", 422, "action"),
        ("/corpora/nothing", 404, "nothing"),
    ):
        answer = running.get(path)
        assert answer.status_code == status and answer.headers["content-type"].startswith("text/html"), path
        assert said in text_of(answer.text), path


HOSTILE = (
    "<script>document.title='run'</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "\u202eright to left\u2066",
    "x" * 300,
    "'\"&<>`\\",
)


def hostile_corpus(root: Path) -> None:
    """A corpus, `hostile`, whose domains have names that pages must not believe."""
    made = MadeUpCorpus.random(HOSTILE, 30, 12, 300, 0)
    made.write(root / "corpora" / "hostile", num_quantiles=2)


def test_names_from_a_corpus_are_text_and_no_markup(root: Path) -> None:
    hostile_corpus(root)
    with client_on(root) as client:
        client.post("/v1/runs", json=RUN | {"corpus": "hostile"}).raise_for_status()
        train(client, 20)
        for path in ("/", "/runs/tune", "/corpora/hostile", "/runs/tune/change?action=policy&value=uniform"):
            html = client.get(path).text
            tags = Elements(html).found
            assert not any("onerror" in attributes for _, attributes in tags)
            assert sum(tag == "img" for tag, _ in tags) == 0 and "49{%" not in html
        assert HOSTILE[0] in text_of(client.get("/corpora/hostile").text)


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (words.count(10000), "10,000"),
        (words.count(412.35), "412.35"),
        (words.count(400.0), "400"),
        (words.count(None), "-"),
        (words.nats(0.0614), "+0.061"),
        (words.nats(-0.5), "-0.500"),
        (words.percent(0.31), "31 %"),
        (words.percent(0.045), "4.5 %"),
        (words.percent(0.0), "0 %"),
        (words.rate(240.3), "240"),
        (words.rate(0.926), "0.93"),
        (words.duration(0.02), "20 ms"),
        (words.duration(10.2), "10 s"),
        (words.duration(130), "2 min"),
        (words.duration(86_400 * 5), "5 d"),
        (words.ago("2025-12-31T23:59:50+00:00", NOW), "10 s ago"),
        (words.ago("2026-01-01T00:00:09+00:00", NOW), "now"),
        (words.ago(None, NOW), "-"),
        (words.clock("2026-01-31T12:00:05.123+00:00"), "2026-01-31 12:00:05"),
    ],
)
def test_words(found: str, wanted: str) -> None:
    assert found == wanted


@pytest.mark.parametrize(
    ("num_effective", "share_covered", "wanted"),
    [
        (5.99, 1.0, "too few: 5.9 of 6 reports"),
        (0.0, 0.0, "too few: 0.0 of 6 reports"),
        (20.0, 1.0, "reports of too few steps"),
        (20.0, 0.5, "not known"),
    ],
)
def test_why_an_estimate_is_not_known(num_effective: float, share_covered: float, wanted: str) -> None:
    found = ForgettingEstimate(
        nats=None,
        low=None,
        high=None,
        level=0.95,
        num_effective=num_effective,
        share_covered=share_covered,
        step=3,
        window_steps=4,
        reason="",
    )
    assert words.unknown(found) == wanted


def test_the_speed_is_of_the_last_two_minutes() -> None:
    assert speed_of([0, 1000, 2000, 3000]) == 1.0
    assert speed_of([0, 500_000, 501_000, 502_000]) == 1.0
    assert speed_of([]) is speed_of([1, 2]) is speed_of([5, 5, 5]) is None


def test_pages_know_who_asks(root: Path) -> None:
    token = make_token(root, "read", "reader")
    with client_on(root) as client:
        assert "reader (read)" in text_of(client.get("/", headers=bearer(token)).text)
