"""Traces by OpenTelemetry: a span for each request, with its run, rank and step. Switched off, nothing is imported."""

from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from replay_service.errors import ReplayError
from replay_service.gateway.logs import SPAN

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

NO_NATIVE_TELEMETRY: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI's own, which `trace_if_wanted` stands in for; FastAPI else looks for its providers at each request."""

_UNTRACED: Final = "healthz,readyz,metrics"


class TracingUnavailable(ReplayError):
    slug, title = "tracing-unavailable", "Requests cannot be traced"


def trace_if_wanted(app: FastAPI, url: str | None) -> None:
    """Send the spans of an application to a collector at `url`; nothing without one.

    Raises:
        TracingUnavailable: when the packages for it are not installed.
    """
    if url is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise TracingUnavailable(
            f"trace_to is set, and {error.name} is not installed: pip install 'replay-service[tracing]'"
        ) from error
    trace(app, BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))


def trace(app: FastAPI, processor: "SpanProcessor") -> None:
    """Give the spans of an application to a processor, which is shut down with the application's process."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource.create({"service.name": "replay-service"}))
    provider.add_span_processor(processor)

    def keep(span: Any, scope: dict[str, Any]) -> None:
        scope[SPAN] = span

    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        excluded_urls=_UNTRACED,
        exclude_spans=["receive", "send"],
        server_request_hook=keep,
    )
