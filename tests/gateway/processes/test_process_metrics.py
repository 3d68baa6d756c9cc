"""`/metrics` of several processes: a scrape at any gateway gives the sums, once, and no counter goes back."""

import os
import signal
import time
from pathlib import Path

import httpx2

from tests.gateway.metrics.worlds import Series, parsed, scrape_until, value
from tests.gateway.raw import exchange
from tests.gateway.worlds import batch_of, create_run, losses_of, report
from tests.support import processes_of, running_service

BATCHES = {"route": "/v1/runs/{run}/batches", "code": "200"}


def fresh(base_url: str) -> Series:
    """A scrape by a connection of its own, which the system gives to any gateway."""
    return parsed(httpx2.get(f"{base_url}/metrics", timeout=60.0).text)


def counters(series: Series) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (name, labels): found
        for name, by_labels in series.items()
        if name.endswith(("_total", "_count", "_sum", "_bucket"))
        for labels, found in by_labels.items()
    }


def test_a_scrape_at_any_gateway_gives_the_sums_of_all_and_nothing_goes_back_when_one_is_killed(root: Path) -> None:
    with running_service(root, options=["--gateways", "2"]) as (url, service):
        with httpx2.Client(base_url=url, timeout=60.0) as client:
            create_run(client, injection_ratio="0.6")
            report(client, losses_of(batch_of(client, 0, 9)))
        for step in range(20):
            with httpx2.Client(base_url=url, timeout=60.0) as client:
                batch_of(client, step % 9)
        for request in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
            assert [each.status for each in exchange(url, request)] == [400]
        found = [fresh(url) for _ in range(10)]
        assert {value(each, "http_requests_total", **BATCHES) for each in found} == {21.0}
        assert {value(each, "http_requests_total", route="/v1/runs", method="POST", code="201") for each in found} == {
            1
        }
        assert {value(each, "run_samples_total", run="tune", outcome="reported") for each in found} == {43.0}
        assert {value(each, "owner_takeovers_total") for each in found} == {1.0}
        assert {value(each, "requests_in_progress") for each in found} == {1.0}
        # What a connection refuses by itself is counted too.
        assert {value(each, "requests_refused_total", reason="malformed-request") for each in found} == {2.0}
        assert {value(each, "http_requests_total", route="unmatched", code="400") for each in found} == {2.0}

        before, killed = counters(found[-1]), processes_of(service, "gateway")[0]
        os.kill(killed, signal.SIGKILL)
        while killed in processes_of(service, "gateway") or len(processes_of(service, "gateway")) < 2:
            time.sleep(0.05)
        with httpx2.Client(base_url=url, timeout=60.0) as client:
            after = counters(scrape_until(client, lambda _: True))
        assert all(after.get(each, 0.0) >= count for each, count in before.items())
