"""How much a page weighs when a browser has nothing of it yet."""

from playwright.sync_api import Browser, Request

from replay_service.testing import replay_service
from tests.gateway.page.worlds import Job

MOST_BYTES = 100_000
NUM_DOMAINS, NUM_QUANTILES, NUM_STEPS = 125, 8, 10_000


def test_a_run_of_10000_steps_and_1000_strata_weighs_less_than_100_kb(browser: Browser) -> None:
    domains = tuple(f"domain-{i:03d}" for i in range(NUM_DOMAINS))
    corpus = {"domains": domains, "rows_per_domain": 80, "num_quantiles": NUM_QUANTILES}
    with replay_service(serve=True, **corpus) as service, service.client() as client:
        job = Job(client, "long", num_quantiles=NUM_QUANTILES)
        job.begin(service.corpus, injection_ratio="0.1").train(NUM_STEPS, window=200)
        page = browser.new_page()
        page.set_default_timeout(20_000)
        done: list[Request] = []  # the stream of events is none of them: it does not end
        page.on("requestfinished", lambda each: done.append(each) if "/events" not in each.url else None)
        with page.expect_response(lambda each: "/curve-points" in each.url) as last:
            page.goto(f"{service.url}/runs/long")
        last.value.finished()
        assert page.locator(".map rect").count() > 2 * NUM_DOMAINS * NUM_QUANTILES - 1
        sizes = {each.url: each.sizes()["responseBodySize"] for each in done}
        page.close()
    assert any("/curve-points" in url for url in sizes) and any("uPlot" in url for url in sizes)
    assert sum(sizes.values()) < MOST_BYTES, sizes
