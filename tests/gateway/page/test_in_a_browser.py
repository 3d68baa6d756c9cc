"""Pages in a browser, with clicks and keys, while a job trains."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect

from replay_service.testing import ServiceUnderTest, replay_service
from tests.gateway.page.test_pages import HOSTILE
from tests.gateway.page.worlds import HOSTILE_TEXTS, Job, write_hostile_texts
from tests.gateway.worlds import make_token


@contextmanager
def training(service: ServiceUnderTest, run: str) -> Iterator[Job]:
    """A job that trains a run until the block ends."""
    is_over = threading.Event()
    with service.client() as client:
        job = Job(client, run).begin(service.corpus)

        def train() -> None:
            while not is_over.wait(0.05):
                job.train(1)

        thread = threading.Thread(target=train)
        thread.start()
        try:
            yield job
        finally:
            is_over.set()
            thread.join()


def step_on(page: Page) -> int:
    return int(page.locator("#live .tiles").inner_text().split("step ")[1].split()[0].rstrip(",").replace(",", ""))


def test_a_run_is_found_by_clicks_and_goes_on_by_itself(page: Page, service: ServiceUnderTest) -> None:
    with training(service, "live") as job:
        page.goto(service.url)
        page.get_by_role("link", name="running", exact=True).click()
        page.get_by_role("link", name="live", exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text("live")
        page.evaluate("window.isTheSamePage = true")
        details = page.locator("#curve details summary")
        if details.count():
            details.click()
        before = step_on(page)
        expect(page.locator("#live .tiles")).not_to_contain_text(f"step {before}\n")
        assert step_on(page) > before
        assert page.evaluate("window.isTheSamePage")
        assert job.next_step > before


def test_the_list_goes_on_by_itself(page: Page, service: ServiceUnderTest) -> None:
    page.goto(service.url)
    with service.client() as client:
        Job(client, "born-later").begin(service.corpus)
    expect(page.locator("#row-born-later")).to_be_visible()


def test_a_change_is_previewed_and_confirmed_by_name(page: Page, service: ServiceUnderTest) -> None:
    with service.client() as client:
        Job(client, "changed").begin(service.corpus).train(10)
        page.goto(f"{service.url}/runs/changed")
        page.get_by_label("Injection ratio").fill("0.5")
        page.locator("form", has=page.get_by_label("Injection ratio")).get_by_role("button").click()
        expect(page.get_by_role("table")).to_contain_text("rehearsed rows a step")
        confirm = page.get_by_label("Type the run's name")
        confirm.fill("change")
        page.get_by_role("button", name="Change the injection ratio").click()
        expect(page.get_by_role("alert")).to_contain_text("nothing was changed")
        assert client.run("changed")["config"]["injection_ratio"] == "0.2"
        confirm.fill("changed")
        confirm.press("Enter")
        expect(page.locator("#live .log")).to_contain_text("injection_ratio 0.2 -> 0.5")
        assert client.run("changed")["config"]["injection_ratio"] == "0.5"

        page.get_by_label("Last step to keep").fill("4")
        page.get_by_role("button", name="Rewind").click()
        page.get_by_label("Type the run's name").fill("changed")
        page.get_by_role("button", name="Rewind the run").click()
        expect(page.locator("#live .tiles")).to_contain_text("step 5, attempt 2")

        page.get_by_role("button", name="Close the run").click()
        page.get_by_label("Type the run's name").fill("changed")
        page.get_by_role("button", name="Close the run").click()
        expect(page.locator("#live .tiles .state")).to_have_text("closed")
        assert client.run("changed")["closed"]


def test_pages_are_read_and_a_run_is_changed_without_a_script(browser: Browser, service: ServiceUnderTest) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    with service.client() as client:
        Job(client, "quiet").begin(service.corpus).train(4)
        page.goto(service.url)
        page.get_by_role("link", name="quiet", exact=True).click()
        expect(page.locator("#live .tiles")).to_contain_text("running")
        page.get_by_role("button", name="Close the run").click()
        page.get_by_label("Type the run's name").fill("quiet")
        page.get_by_role("button", name="Close the run").click()
        expect(page.locator("#live .tiles .state")).to_have_text("closed")
        assert client.run("quiet")["closed"]
    context.close()


def pages_of(service: ServiceUnderTest, run: str) -> list[str]:
    samples = httpx2.get(f"{service.url}/v1/runs/{run}/samples?limit=1").json()["samples"]
    paths = ["/", f"/runs/{run}", "/corpora", f"/corpora/{service.corpus}", f"/runs/{run}/change?action=close"]
    paths += [f"/runs/{run}/change?action=policy&value=uniform", f"/runs/{run}/samples/{samples[0]['sample_id']}"]
    return [service.url + path for path in [*paths, "/login", "/runs/nobody"]]


def assert_no_sideways_scrolling(page: Page) -> None:
    widths = page.evaluate("[document.scrollingElement.scrollWidth, document.scrollingElement.clientWidth]")
    assert widths[0] <= widths[1], (page.url, widths)


def test_a_phone_scrolls_no_page_sideways(page: Page, service: ServiceUnderTest) -> None:
    for width in (500, 360):
        page.set_viewport_size({"width": width, "height": 800})
        for url in pages_of(service, "steady"):
            page.goto(url)
            assert_no_sideways_scrolling(page)


def test_hostile_names_neither_run_nor_break_the_layout(page: Page) -> None:
    with replay_service(serve=True, domains=HOSTILE, rows_per_domain=60) as service, service.client() as client:
        Job(client, "steady", num_quantiles=2).begin(service.corpus).train(20)
        page.set_viewport_size({"width": 500, "height": 800})
        for url in pages_of(service, "steady"):
            page.goto(url)
            assert_no_sideways_scrolling(page)
            assert page.title() != "run"


def test_hostile_texts_of_samples_neither_run_nor_break_the_layout(page: Page) -> None:
    with replay_service(serve=True, rows_per_domain=60) as service, service.client() as client:
        write_hostile_texts(service.root / "corpora" / service.corpus)
        Job(client, "steady", num_quantiles=2).begin(service.corpus).train(20)
        samples = texts_of(service)
        page.set_viewport_size({"width": 500, "height": 800})
        page.goto(f"{service.url}/runs/steady")
        expect(page.locator(".excerpt").first).to_be_visible()
        assert_nothing_of_a_text_runs(page)
        for sample_id, text in samples.items():
            page.goto(f"{service.url}/runs/steady/samples/{sample_id}")
            # A browser takes CR LF for LF, and leaves NUL out.
            shown = page.locator(".text").evaluate("each => each.textContent")
            assert shown == text.replace("\r\n", "\n").replace("\0", "")
            assert_nothing_of_a_text_runs(page)
        said = "".join(samples.values())
        assert all(each in said for each in HOSTILE_TEXTS)


def texts_of(service: ServiceUnderTest) -> dict[int, str]:
    """The texts of some samples by their ids."""
    found = httpx2.get(f"{service.url}/v1/runs/steady/samples?limit=8&text=1", timeout=60).json()["samples"]
    return {each["sample_id"]: each["text"] for each in found}


def assert_nothing_of_a_text_runs(page: Page) -> None:
    assert_no_sideways_scrolling(page)
    assert "steady" in page.title()
    assert page.locator("h1").count() == 1
    assert page.locator("main script, main img, [onerror], [onload]").count() == 0


CHECKED = """() => {
  const said = [];
  const levels = [...document.querySelectorAll("h1,h2,h3,h4")].map(each => Number(each.tagName[1]));
  if (levels[0] !== 1 || levels.filter(each => each === 1).length !== 1) said.push(`headings ${levels}`);
  for (let i = 1; i < levels.length; i++) if (levels[i] > levels[i - 1] + 1) said.push(`headings ${levels}`);
  if (document.querySelectorAll("main").length !== 1 || !document.querySelector("header nav[aria-label]"))
    said.push("landmarks");
  if (!document.documentElement.lang || !document.title) said.push("language or title");
  for (const each of document.querySelectorAll("input:not([type=hidden]), select, textarea"))
    if (!each.labels?.length && !each.ariaLabel) said.push(`no label: ${each.outerHTML}`);
  for (const each of document.querySelectorAll("svg"))
    if (!each.closest("[aria-hidden=true]") && !(each.role === "img" && each.ariaLabel))
      said.push(`no name: svg.${each.getAttribute("class")}`);
  for (const each of document.querySelectorAll("thead th")) if (each.scope !== "col") said.push("scope of a column");
  for (const each of document.querySelectorAll("section"))
    if (!each.ariaLabel && !document.getElementById(each.getAttribute("aria-labelledby"))) said.push("section");
  for (const each of document.querySelectorAll(".scroll"))
    if (each.tabIndex !== 0 || !(each.ariaLabel || each.getAttribute("aria-labelledby"))) said.push("scroll");
  const ids = [...document.querySelectorAll("[id]")].map(each => each.id);
  if (new Set(ids).size !== ids.length) said.push(`ids twice: ${ids.filter((each, i) => ids.indexOf(each) !== i)}`);
  return said;
}"""


def test_headings_labels_and_landmarks(page: Page, service: ServiceUnderTest) -> None:
    for url in pages_of(service, "steady"):
        page.goto(url)
        assert page.evaluate(CHECKED) == [], url


def test_a_keyboard_is_enough(page: Page, service: ServiceUnderTest) -> None:
    page.goto(f"{service.url}/runs/steady")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    ratio = page.get_by_label("Injection ratio")
    for _ in range(60):
        page.keyboard.press("Tab")
        if ratio.evaluate("each => each === document.activeElement"):
            break
    expect(ratio).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("0.4")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Change the injection ratio: steady")


def test_focus_and_open_details_outlive_a_refresh(page: Page, service: ServiceUnderTest) -> None:
    page.goto(f"{service.url}/runs/steady")
    table = page.get_by_role("region", name="Table of domains")
    table.focus()
    with page.expect_response(lambda each: each.url.endswith("/live")):
        pass
    page.wait_for_timeout(100)
    expect(table).to_be_focused()


def test_the_curve_is_drawn_and_read_with_keys(page: Page, service: ServiceUnderTest) -> None:
    page.goto(f"{service.url}/runs/steady")
    chart, readout = page.locator("#curve"), page.locator("#curve-readout")
    expect(chart.locator("canvas")).to_be_visible()
    chart.focus()
    page.keyboard.press("End")
    expect(readout).to_contain_text("corpus")
    at_the_end = readout.inner_text()
    page.keyboard.press("ArrowLeft")
    expect(readout).not_to_have_text(at_the_end)
    box = page.locator("#curve-domains").get_by_role("checkbox").last
    name = box.get_attribute("value") or ""
    with page.expect_response(lambda each: f"domain={name}" in each.url):
        box.check()
    page.evaluate("htmx.trigger('#curve-section', 'refresh')")
    page.locator("#curve-section summary").click()
    expect(page.get_by_role("region", name="Table of the curve")).to_be_visible()
    with page.expect_response(lambda each: each.url.endswith("/curve")):
        page.evaluate("htmx.trigger('#curve-section', 'refresh')")
    page.wait_for_timeout(100)
    expect(chart.locator("canvas")).to_be_visible()
    expect(page.get_by_role("region", name="Table of the curve")).to_be_visible()
    assert page.get_by_role("region", name="Table of the curve").locator("tbody tr").count() <= 25


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, service: ServiceUnderTest, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    page = browser.new_page(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(f"{service.url}/runs/steady")
    assert page.evaluate(CONTRAST) == []
    page.close()


CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const behind = each => {
    for (let at = each; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const said = new Set();
  for (const each of document.querySelectorAll("main *, header *")) {
    if (![...each.childNodes].some(node => node.nodeType === 3 && node.data.trim()) || each.closest("svg")) continue;
    const [a, b] = [light(rgb(getComputedStyle(each).color)), light(behind(each))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) said.add(`${each.tagName}.${each.className}: ${each.textContent.slice(0, 30)}`);
  }
  return [...said];
}"""


def test_logging_in_and_out_by_clicks(page: Page, tmp_path: Path) -> None:
    token = make_token(tmp_path, "read", "reader")
    with replay_service(serve=True, settings={"tokens_file": tmp_path / "tokens.toml"}) as service:
        with page.expect_response(service.url + "/corpora") as refused:
            page.goto(f"{service.url}/corpora")
        assert refused.value.status == 401
        page.get_by_label("Token").fill("rpl_wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("does not know the token")
        page.get_by_label("Token").fill(token)
        page.get_by_label("Token").press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Corpora")
        assert page.url == f"{service.url}/corpora"
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("link", name="HTTP API").click()
        expect(page.locator("#operations-runs-list_runs")).to_be_visible()
        page.get_by_role("link", name="Replay service", exact=True).click()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Token")).to_be_visible()


def test_the_service_is_away(browser: Browser) -> None:
    page = browser.new_page()
    with replay_service(serve=True) as service, service.client() as client:
        Job(client, "alone", num_quantiles=2).begin(service.corpus).train(2)
        page.goto(f"{service.url}/runs/alone")
        expect(page.locator("#offline")).to_be_hidden()
    expect(page.locator("#offline")).to_contain_text("does not answer")
    expect(page.locator("#live .tiles")).to_contain_text("step 2")
    page.close()


def test_an_error_is_said_with_its_reason_until_there_is_an_answer(page: Page, service: ServiceUnderTest) -> None:
    page.goto(f"{service.url}/runs/steady")
    error = "<main><h1>Journal unavailable</h1><p>the journal cannot be read now</p></main>"
    page.route("**/live", lambda route: route.fulfill(status=503, body=error, content_type="text/html"))
    with page.expect_response(lambda each: each.status == 503):
        pass
    page.wait_for_timeout(200)
    expect(page.locator("#offline")).to_have_text(
        "The service does not answer (503): the journal cannot be read now. What you see may be old."
    )
    expect(page.locator("#live .tiles")).to_contain_text("step 80")
    page.unroute("**/live")
    expect(page.locator("#offline")).to_be_hidden()


def test_the_api_is_read_and_tried_offline(page: Page, service: ServiceUnderTest) -> None:
    page.goto(f"{service.url}/docs")
    operation = page.locator("#operations-runs-list_runs")
    operation.get_by_role("button").first.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table")).to_contain_text("steady")
