"""Pages without a browser: what they say, and that nothing in them runs."""

import gzip
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text

from replay_service.gateway.app import create_app
from replay_service.gateway.page import words
from replay_service.gateway.page.rendering import POLICY
from replay_service.gateway.page.run_log import speed_of
from replay_service.gateway.recent_answers import Allowance, RecentAnswers
from replay_service.gateway.service import ReplayService
from replay_service.gateway.statistics_models import ForgettingEstimate
from replay_service.settings import load_settings
from replay_service.testing.corpus import MadeUpCorpus
from tests.gateway.worlds import RUN, ask, batch_of, bearer, client_on, create_run, losses_of, make_token, report
from tests.support import make_corpus

HTML = {"accept": "text/html"}
OWN = {"origin": "http://127.0.0.1"}
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


@pytest.fixture
def trained(running: TestClient) -> TestClient:
    """A client of a service whose run `tune` has six steps, of which five are reported."""
    train(running, 5)
    batch_of(running, 5)
    return running


def train(client: TestClient, num_steps: int, first: int = 0) -> None:
    for step in range(first, first + num_steps):
        batch = batch_of(client, step)
        report(client, losses_of(batch, 2.5 + step, 1)).raise_for_status()


def a_sample(client: TestClient) -> int:
    (sample,) = client.get("/v1/runs/tune/samples?limit=1").json()["samples"]
    return int(sample["sample_id"])


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


def runs_in(html: str) -> list[str]:
    return re.findall(r'<tr id="row-([^"]+)"', html)


def text_of(html: str) -> str:
    """The text of a page, as somebody reads it."""
    texts: list[str] = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_data = texts.append  # type: ignore[method-assign]
    parser.feed(html)
    return re.sub(r"\s+", " ", " ".join(texts))


class TestStates:
    """Each state of a run, as its page draws it."""

    def test_waiting(self, running: TestClient) -> None:
        assert "waiting" in text_of(running.get("/runs/tune").text)

    def test_first_reports(self, running: TestClient) -> None:
        train(running, 2)
        assert re.search(
            r"worth \d+\.\d independent ones, and an estimate takes 6", text_of(running.get("/runs/tune").text)
        )

    def test_stale(self, root: Path) -> None:
        with client_on(root, stale_after_s=1e-9) as client:
            create_run(client)
            batch_of(client, 0)
            page = text_of(client.get("/runs/tune").text)
        assert "stale" in page and "LOOK nothing was heard of the job" in page

    def test_with_too_few_reports(self, running: TestClient) -> None:
        train(running, 2)
        page = text_of(running.get("/runs/tune").text)
        assert re.search(r"too few: \d\.\d of 6 reports the first visits reported in the last 2 steps are worth", page)

    def test_domains_tell_how_much_they_are_drawn(self, trained: TestClient) -> None:
        assert re.search(r"Drawn / size .* \d+ % / 50 %", text_of(trained.get("/runs/tune").text))

    def test_seen_once(self, running: TestClient) -> None:
        train(running, 60)
        assert "of the draws are repeats" in text_of(running.get("/runs/tune").text)

    def test_damaged(self, root: Path, running: TestClient) -> None:
        batch_of(running, 0)
        segment = min((root / "corpora" / "wiki").rglob("*.arrow"))
        segment.write_bytes(segment.read_bytes()[:100])
        with client_on(root) as client:
            client.post("/v1/runs/tune/batches", json={"step": 1, "num_steps": 20}).raise_for_status()
            page, corpus = (text_of(client.get(path).text) for path in ("/runs/tune", "/corpora/wiki"))
            assert runs_in(client.get("/?state=damaged").text) == ["tune"]
        assert "damaged" in page and re.search(rf"LOOK segment \S*{segment.name} ", page)
        assert re.search(rf"LOOK Segment \S*{segment.name} cannot be read", corpus)

    def test_with_a_damaged_journal(self, root: Path, trained: TestClient) -> None:
        engine = create_engine(f"sqlite:///{root / 'journal.sqlite'}")
        with engine.begin() as connection:
            connection.execute(text("UPDATE events SET step = step + 50 WHERE kind = 'planned'"))
        engine.dispose()
        with client_on(root) as client:
            page = client.get("/runs/tune")
            assert page.status_code == 500 and "journal verify tune" in text_of(page.text)
            assert "journal verify tune" in text_of(client.get("/").text)

    def test_finished(self, trained: TestClient) -> None:
        trained.post("/v1/runs/tune/finish", json={"num_steps": 6}).raise_for_status()
        assert "finished" in text_of(trained.get("/runs/tune").text)

    def test_closed_offers_to_rewind_alone(self, trained: TestClient) -> None:
        trained.post("/v1/runs/tune/close", json={}).raise_for_status()
        page = trained.get("/runs/tune").text
        assert re.findall(r'name="action" value="([^"]+)"', page) == ["rewind"]

    def test_of_another_owner(self, root: Path, trained: TestClient) -> None:
        """A page of a second service takes the run from nobody."""
        with client_on(root) as other:
            page = text_of(other.get("/runs/tune").text)
            assert "step 6" in page
            assert "tune" in other.get("/").text
        train(trained, 1, 6)

    def test_of_a_service_from_which_another_takes_the_run(self, root: Path, trained: TestClient) -> None:
        with client_on(root) as other:
            train(other, 1, 6)
            page = text_of(trained.get("/runs/tune").text)
            assert "LOOK another service on the same journal has taken the run" in page
            assert "another service" not in text_of(other.get("/runs/tune").text)
            for step in range(7, 13):
                owner = (trained, other)[step % 2 == 0]
                ask(owner, step=step)  # it learns here that it has lost the run
                train(owner, 1, step)
            page = text_of(trained.get("/runs/tune").text)
        assert "LOOK two services take the run from each other, this one 3 times in ten minutes" in page

    def test_without_its_corpus(self, root: Path, trained: TestClient) -> None:
        (root / "corpora" / "wiki").rename(root / "away")
        with client_on(root) as other:
            page = text_of(other.get("/runs/tune").text)
            assert "damaged" in text_of(other.get("/").text)
        assert "damaged" in page and "LOOK there is no corpus 'wiki'" in page


class TestSharing:
    """Those who look again and again share what they are given; who opens a page gets it new."""

    def test_a_part_is_the_same_for_all_until_somebody_opens_the_page(self, trained: TestClient) -> None:
        def part() -> str:
            return text_of(trained.get("/runs/tune/live").text)

        service: ReplayService = trained.app.state.service  # type: ignore[attr-defined]
        service.watched.fragments = RecentAnswers(Allowance(share=0.0, burst_s=0.0))
        before = part()
        assert "step 6" in before and "As of 20" in before
        train(trained, 1, 6)
        assert part() == before
        assert "step 7" in text_of(trained.get("/runs/tune").text)
        assert "step 7" in part()

    def test_a_rewind_and_another_run_of_the_name_have_parts_of_their_own(self, trained: TestClient) -> None:
        assert "step 6" in text_of(trained.get("/runs/tune/live").text)
        trained.post("/v1/runs/tune/rewind", json={"step": 2}).raise_for_status()
        assert "step 3, attempt 2" in text_of(trained.get("/runs/tune/live").text)
        trained.post("/v1/runs/tune/close", json={}).raise_for_status()
        trained.delete("/v1/runs/tune").raise_for_status()
        assert trained.get("/runs/tune/live").status_code == 404
        create_run(trained)
        assert "waiting" in text_of(trained.get("/runs/tune/live").text)

    def test_the_list_is_shared_by_those_who_look_on(self, trained: TestClient) -> None:
        def names(headers: dict[str, str]) -> list[str]:
            return runs_in(trained.get("/", headers=headers).text)

        service: ReplayService = trained.app.state.service  # type: ignore[attr-defined]
        service.watched.fragments = RecentAnswers(Allowance(share=0.0, burst_s=0.0))
        again = {"hx-request": "true"}
        assert names(again) == ["tune"]
        create_run(trained, run="born-later")
        assert names(again) == ["tune"]
        assert names({}) == names(again) == ["born-later", "tune"]

    def test_of_runs_that_cost_too_much_the_list_has_the_rest_later(self, trained: TestClient) -> None:
        service: ReplayService = trained.app.state.service  # type: ignore[attr-defined]
        service.watched.statistics = RecentAnswers(Allowance(share=0.0, burst_s=0.0))
        assert "open the run to see" in text_of(trained.get("/").text)
        trained.get("/runs/tune/live")
        assert "open the run to see" not in text_of(trained.get("/").text)


class TestChanges:
    """A preview first, then the run's name."""

    def post(self, client: TestClient, **fields: str) -> Any:
        query = {name: fields[name] for name in ("action", "value") if name in fields}
        shown = client.get("/runs/tune/change", params=query).text
        seen = re.findall(r'name="seen" value="([^"]*)"', shown) or [""]
        data = {"seen": seen[0], "confirm": "tune"} | fields
        return client.post("/runs/tune/change", data=data, headers=OWN, follow_redirects=False)

    def test_a_preview_changes_nothing_and_says_what_would_change(self, trained: TestClient) -> None:
        before = trained.get("/v1/runs/tune").json()
        page = text_of(trained.get("/runs/tune/change?action=injection_ratio&value=0.5").text)
        assert re.search(r"injection_ratio 0\.3 0\.5 rehearsed rows a step 2\.4 4", page)
        assert "from the first step without a plan on, which is 6 now" in page
        assert trained.get("/v1/runs/tune").json() == before

    def test_the_preview_of_a_policy_tells_the_draws_of_each_domain(self, root: Path, trained: TestClient) -> None:
        page = text_of(trained.get("/runs/tune/change?action=policy&value=stratified").text)
        assert "policy mix_cd stratified" in page
        strata = trained.get("/v1/runs/tune/strata").json()["strata"]
        now = sum(each["draw_share"] for each in strata if each["domain"] == "en")
        if abs(now - 0.5) >= 0.001:
            assert f"draws of en {words.percent(now)} 50 %" in page

    def test_a_setting(self, trained: TestClient) -> None:
        for action, value, then in (
            ("injection_ratio", "0.5", "0.5"),
            ("floor", "0.25", 0.25),
            ("policy", "uniform", "uniform"),
            ("injection_ratio", "auto", "auto"),
        ):
            answer = self.post(trained, action=action, value=value)
            assert answer.status_code == 303 and answer.headers["location"] == "/runs/tune", action
            assert trained.get("/v1/runs/tune").json()["config"][action] == then
            assert f"configured {action} " in text_of(trained.get("/runs/tune").text)

    def test_a_rewind(self, trained: TestClient) -> None:
        assert self.post(trained, action="rewind", value="2").status_code == 303
        run = trained.get("/v1/runs/tune").json()
        assert (run["next_step"], run["attempt"]) == (3, 2)

    def test_closing(self, trained: TestClient) -> None:
        assert self.post(trained, action="close").status_code == 303
        assert trained.get("/v1/runs/tune").json()["closed"]

    def test_without_the_name_nothing_changes(self, trained: TestClient) -> None:
        for confirm in ("", "tun", "TUNE", "other", "tune2"):
            answer = self.post(trained, action="close", confirm=confirm)
            assert answer.status_code == 422 and "nothing was changed" in answer.text, confirm
        assert not trained.get("/v1/runs/tune").json()["closed"]

    def test_a_run_that_has_changed_since_the_preview_is_shown_again(self, trained: TestClient) -> None:
        shown = trained.get("/runs/tune/change?action=floor&value=0.5").text
        (seen,) = re.findall(r'name="seen" value="([^"]*)"', shown)
        trained.patch("/v1/runs/tune", json={"sharpness": 2.0}).raise_for_status()
        answer = self.post(trained, action="floor", value="0.5", seen=seen)
        assert answer.status_code == 422 and "has changed since" in answer.text
        assert trained.get("/v1/runs/tune").json()["config"]["floor"] == 0.1

    def test_a_bad_value_is_refused_in_the_preview(self, trained: TestClient) -> None:
        before = trained.get("/v1/runs/tune").json()
        for action, value, said in (
            ("injection_ratio", "2", "[0, 1]"),
            ("injection_ratio", "<b>", "injection_ratio"),
            ("injection_ratio", "0.3", "already"),
            ("policy", "best", "policy"),
            ("floor", "x", "number"),
            ("floor", "2", "floor"),
            ("floor", "nan", "floor"),
            ("rewind", "6", "up to 5"),
            ("rewind", "-2", "whole number"),
            ("rewind", "9" * 80, "whole number"),
            ("rewind", "x", "whole number"),
        ):
            answer = trained.get("/runs/tune/change", params={"action": action, "value": value})
            assert answer.status_code == 422 and said in text_of(answer.text), (action, value)
            assert "<b>" not in answer.text
            assert self.post(trained, action=action, value=value).status_code == 422, (action, value)
        assert trained.get("/v1/runs/tune").json() == before

    def test_steps_that_come_meanwhile_are_no_change(self, trained: TestClient) -> None:
        shown = trained.get("/runs/tune/change?action=floor&value=0.5").text
        (seen,) = re.findall(r'name="seen" value="([^"]*)"', shown)
        train(trained, 2, 6)
        assert self.post(trained, action="floor", value="0.5", seen=seen).status_code == 303

    def test_a_fixed_ratio_is_not_offered(self, client: TestClient) -> None:
        create_run(client, injection_fixed=True)
        assert 'value="injection_ratio"' not in client.get("/runs/tune").text

    def test_a_change_is_in_the_audit_with_the_run(self, trained: TestClient) -> None:
        from structlog.testing import capture_logs

        with capture_logs() as logs:
            self.post(trained, action="close")
        (line,) = [each for each in logs if each["event"] == "audit"]
        assert {"route": "/runs/{run}/change", "run": "tune", "status": 303}.items() <= line.items()


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
