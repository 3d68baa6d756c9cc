"""Metrics as a scrape gives them."""

import time
from collections.abc import Callable, Mapping

import httpx2
from prometheus_client.parser import text_string_to_metric_families

Series = dict[str, dict[frozenset[tuple[str, str]], float]]
"""Values by the name of the sample and its labels."""


def scrape(client: httpx2.Client, headers: Mapping[str, str] | None = None) -> Series:
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parsed(answer.text)


def parsed(text: str) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            by_labels = found.setdefault(sample.name, {})
            key = frozenset(sample.labels.items())
            assert key not in by_labels, f"{sample.name} {sample.labels} stands there twice"
            by_labels[key] = sample.value
    return found


def value(series: Series, name: str, **labels: str) -> float | None:
    """The sum of the series that have these labels, among others; None where there is none."""
    wanted = set(labels.items())
    found = [each for key, each in series.get(f"replay_{name}", {}).items() if wanted <= key]
    return sum(found) if found else None


def scrape_until(client: httpx2.Client, holds: Callable[[Series], object]) -> Series:
    """Scrape until something holds; what states tell is made in the background."""
    for _ in range(600):
        found = scrape(client)
        if holds(found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"it does not come to hold: {found}")
