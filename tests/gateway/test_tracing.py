"""Traces: a span for each request, where they are switched on."""

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from replay_service.gateway.app import create_app
from replay_service.gateway.tracing import TracingUnavailable, trace
from replay_service.settings import load_settings
from tests.gateway.worlds import batch_of, create_run, losses_of, report


def test_batches_and_reports_are_spans_with_their_run_rank_and_step(root: Path) -> None:
    exporter = InMemorySpanExporter()
    app = create_app(load_settings(root=root))
    trace(app, SimpleSpanProcessor(exporter))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        create_run(client)
        report(client, losses_of(batch_of(client, 4, rank=1, world_size=2)))
        client.get("/v1/runs/tune/stats")
        client.get("/healthz")
    spans = {str(each.name): dict(each.attributes or {}) for each in exporter.get_finished_spans()}
    assert set(spans) == {
        "POST /v1/runs",
        "POST /v1/runs/{run}/batches",
        "POST /v1/runs/{run}/losses",
        "GET /v1/runs/{run}/stats",
    }
    about: dict[str, Any] = {"replay.run": "tune", "replay.rank": 1, "replay.step": 4}
    for name in ("batches", "losses"):
        assert about.items() <= spans[f"POST /v1/runs/{{run}}/{name}"].items()
    assert spans["GET /v1/runs/{run}/stats"]["replay.run"] == "tune"


def test_switched_off_nothing_is_imported() -> None:
    loaded = "[each for each in sys.modules if each.startswith(('opentelemetry.sdk', 'opentelemetry.instrumentation'))]"
    code = f"import sys, replay_service.gateway.app; print({loaded})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_missing_package_is_named_with_its_extra(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TracingUnavailable, match=r"replay-service\[tracing\]"):
        create_app(load_settings(root=root, trace_to="http://127.0.0.1:4318/v1/traces"))
