"""The table of metrics, the documentation, the alert rules and the dashboard say the same."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml

from replay_service.gateway.metrics.table import METRICS, PREFIX
from replay_service.testing import ServiceUnderTest, replay_service
from replay_service.wire.losses import LOSS_ROW
from tests.deploy.promtool import RULES, prometheus, promtool, scraping

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy/grafana/dashboards/replay-service.json"
ALERTS_PAGE = ROOT / "docs/how-to/alerts.md"
REFERENCE = ROOT / "docs/reference/metrics.md"

SERIES = {each.full_name: each for each in METRICS} | {
    f"{each.full_name}_{part}": each
    for each in METRICS
    if each.kind == "histogram"
    for part in ("bucket", "sum", "count")
}
"""Every metric by the names of its series."""


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panels() -> list[dict[str, Any]]:
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [each for each in found if each["type"] != "row"]


def named_in(expression: str) -> set[str]:
    """The series of ours that an expression names; a regular expression for names stands for all that it matches."""
    patterns = re.findall(r'__name__=~"([^"]+)"', expression)
    matched = {name for name in SERIES for pattern in patterns if re.fullmatch(pattern, name)}
    without = re.sub(r'"[^"]*"', '""', expression)
    return matched | set(re.findall(rf"\b{PREFIX}\w+", without))


def metrics_in(text: str) -> set[str]:
    """The metrics that a text or an expression names; raises KeyError where there is no such series."""
    return {SERIES[name].full_name for name in named_in(text)}


def test_names_are_as_prometheus_wants_them() -> None:
    for each in METRICS:
        assert (each.kind == "counter") == each.name.endswith("_total"), each.name
        assert bool(each.buckets) == (each.kind == "histogram"), each.name
        assert list(each.buckets) == sorted(each.buckets)
    assert len({each.name for each in METRICS}) == len(METRICS)


def test_code_documentation_rules_and_dashboard_know_the_same_metrics() -> None:
    every = {each.full_name for each in METRICS}
    assert set(re.findall(r"^\| `(\w+)`", REFERENCE.read_text(), re.M)) == every
    assert {name for each in alerts() for name in metrics_in(each["expr"])} <= every
    assert {name for each in panels() for target in each["targets"] for name in metrics_in(target["expr"])} == every


def test_every_panel_names_its_metrics_and_shows_words_for_what_is_no_number() -> None:
    for each in panels():
        asked = set().union(*(metrics_in(target["expr"]) for target in each["targets"]))
        assert metrics_in(each["description"]) == asked, each["title"]
        defaults = each["fieldConfig"]["defaults"]
        matches = {mapping["options"].get("match") for mapping in defaults["mappings"] if mapping["type"] == "special"}
        assert matches == {"nan", "null"}
        assert defaults["noValue"]


def test_panels_do_not_lie_over_each_other() -> None:
    taken = set[tuple[int, int]]()
    for each in panels():
        place = each["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_alert_says_what_it_means_and_where_it_is_explained() -> None:
    sections = set(re.findall(r"^## (\w+)$", ALERTS_PAGE.read_text(), re.M))
    assert sections == {each["alert"] for each in alerts()}
    for each in alerts():
        notes = each["annotations"]
        assert notes["summary"]
        assert notes["description"]
        assert notes["runbook_url"] == f"docs/how-to/alerts.md#{each['alert'].lower()}"
        assert each["labels"]["severity"] in ("critical", "warning", "info")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "--lint-fatal", str(RULES)],
        ["check", "config", str(RULES.with_name("prometheus.yml"))],
        ["test", "rules", str(RULES.with_name("alerts_test.yml"))],
    ],
)
def test_promtool_finds_nothing_wrong(arguments: list[str]) -> None:
    result = subprocess.run([promtool(), *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    tests = yaml.safe_load(RULES.with_name("alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    firing = {case["alertname"] for case in cases if case["exp_alerts"]}
    assert firing == {each["alert"] for each in alerts()}


def expressions() -> list[str]:
    """Those of all panels, with the dashboard's variables put in."""
    found = [target["expr"] for each in panels() for target in each["targets"]]
    return [each.replace("$__rate_interval", "30s").replace("$run", ".*") for each in found]


def has_data(client: httpx2.Client, expression: str) -> bool:
    try:
        answer = client.get("/api/v1/query", params={"query": expression})
    except httpx2.TransportError:
        return False
    return answer.status_code == 200 and bool(answer.json()["data"]["result"])


def test_every_panel_shows_something_when_a_real_service_is_scraped(tmp_path: Path) -> None:
    prometheus()
    with replay_service(domains=("en", "fr"), rows_per_domain=400, serve=True) as service, service.client() as client:
        corpora = service.root / "corpora"
        (corpora / service.corpus / "status.json").write_text(json.dumps(STATUS))
        client.ensure_run("tune", service.corpus, {"global_batch_size": 64, "injection_ratio": "auto"} | BUDGET)
        refuse_a_plan(service)
        step, missing = 0, expressions()
        with scraping([service.url], tmp_path) as asked:
            ends_at = time.monotonic() + 240
            while missing and time.monotonic() < ends_at:
                if step < 200:
                    step = train(client, step)
                missing = [each for each in missing if not has_data(asked, each)]
            firing = asked.get("/api/v1/alerts").json()["data"]["alerts"]
    assert missing == []
    assert [each["labels"]["alertname"] for each in firing if each["state"] == "firing"] == []


def refuse_a_plan(service: ServiceUnderTest) -> None:
    """A fenced run waits for reports."""
    fenced = {"run": "fenced", "corpus": service.corpus, "global_batch_size": 8, "injection_ratio": "0.5"}
    httpx2.post(f"{service.url}/v1/runs", json=fenced | {"feedback": {"mode": "fenced", "lag": 1}})
    plans = [httpx2.post(f"{service.url}/v1/runs/fenced/batches", json={"step": step}) for step in (0, 1)]
    assert [each.status_code for each in plans] == [200, 503]


BUDGET = {"budget": {"first_ratio": "0.2"}}
STATUS = {
    "state": "finished",
    "started_at": 1.0,
    "updated_at": 2.0,
    "host": "elsewhere",
    "pid": 1,
    "progress": {
        "shards_done": 1,
        "num_shards": 1,
        "share_done": 1.0,
        "num_rows": 800,
        "num_tokens": 9,
        "num_set_aside": 0,
        "generation": 1,
    },
}


def train(client: Any, step: int) -> int:
    """Train and report some steps; the next one."""
    batch = client.batch("tune", step, num_steps=5)
    rows = np.zeros(len(batch), dtype=LOSS_ROW)
    rows["step"], rows["sample_id"] = batch.step, batch.sample_id
    rows["loss_nats"], rows["num_tokens"], rows["num_flips"] = 6.0, 15, 1
    client.report("tune", rows)
    return step + 5
