from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, Page, expect

from replay_service.testing import ServiceUnderTest, replay_service
from tests.gateway.page.browsers import chromium, troubles_of
from tests.gateway.page.worlds import DOMAINS, NUM_QUANTILES, Job, train
from tests.gateway.worlds import batch_of


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a file. Until it ends, an event loop runs in this thread, which no test of another
    file may meet."""
    expect.set_options(timeout=20_000)
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a browser without cookies; at the end of a test nothing may have gone wrong on it."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(20_000)
    page = context.new_page()
    troubles = troubles_of(page)
    yield page
    context.close()
    assert troubles == []


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    """A service on a port, with the runs `steady` of 80 steps, `young` of 2 and `waiting` of none."""
    corpus = {"domains": DOMAINS, "rows_per_domain": 300, "num_quantiles": NUM_QUANTILES, "corpus": "web"}
    with replay_service(serve=True, **corpus) as service, service.client() as client:
        Job(client, "steady").begin("web").train(80)
        Job(client, "young").begin("web").train(2)
        Job(client, "waiting").begin("web")
        yield service


@pytest.fixture
def trained(running: TestClient) -> TestClient:
    """A client of a service whose run `tune` has six steps, of which five are reported."""
    train(running, 5)
    batch_of(running, 5)
    return running
