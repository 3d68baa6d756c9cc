"""Answers are counted, whoever gives them: routes, middlewares, the connection itself."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from replay_service.gateway.metrics.exposition import Exposition
from replay_service.gateway.metrics.process import ProcessMetrics
from replay_service.gateway.metrics.table import IN_PROCESS
from replay_service.gateway.middleware.counting import Counting
from replay_service.gateway.middleware.overload import Overload
from tests.gateway.metrics.worlds import Series, parsed, value


def series_of(metrics: ProcessMetrics) -> Series:
    exposition = Exposition(IN_PROCESS)
    exposition.add_counted(metrics.registry())
    return parsed(exposition.text())


class Answers:
    """An application that answers with one status and some headers, or fails before or after its head."""

    def __init__(self, status: int = 200, headers: Mapping[bytes, bytes] | None = None, fails: str = "") -> None:
        self._start = {"type": "http.response.start", "status": status, "headers": list((headers or {}).items())}
        self._fails = fails

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._fails == "before":
            raise RuntimeError("before the head")
        await send(self._start)
        if self._fails == "after":
            raise RuntimeError("after the head")
        await send({"type": "http.response.body"})


def ask(app: Any, path: str = "/a/1", method: str = "GET", headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    async def receive() -> Message:
        raise AssertionError("nobody reads the body")

    async def send(message: Message) -> None: ...

    asyncio.run(app({"type": "http", "path": path, "method": method, "headers": headers}, receive, send))


@pytest.mark.parametrize(("fails", "code"), [("before", "500"), ("after", "200")])
def test_what_fails_is_counted_too(fails: str, code: str) -> None:
    metrics = ProcessMetrics()
    with pytest.raises(RuntimeError):
        ask(Counting(Answers(fails=fails), metrics, ["/a/{b}"]))
    found = series_of(metrics)
    assert value(found, "http_requests_total", route="/a/{b}", code=code) == 1
    assert value(found, "requests_in_progress") == 0


def test_a_stream_of_events_has_no_duration() -> None:
    metrics = ProcessMetrics()
    ask(Counting(Answers(headers={b"content-type": b"text/event-stream; charset=utf-8"}), metrics, ["/a/{b}"]))
    found = series_of(metrics)
    assert value(found, "http_requests_total") == 1
    assert value(found, "http_request_duration_seconds_count") is None


def test_a_request_more_than_may_be_in_progress_is_a_refusal_with_its_reason() -> None:
    metrics = ProcessMetrics()
    ask(Counting(Overload(Answers(), 0, 0, metrics), metrics, ["/a/{b}"]))
    found = series_of(metrics)
    assert value(found, "http_requests_total", route="/a/{b}", code="503") == 1
    assert value(found, "requests_refused_total", reason="too-many-requests") == 1


def test_a_watcher_more_than_may_follow_is_a_refusal_with_its_reason() -> None:
    metrics = ProcessMetrics()
    ask(Overload(Answers(), 9, 0, metrics), "/v1/runs/a/events", headers=[(b"accept", b"text/event-stream")])
    assert value(series_of(metrics), "requests_refused_total", reason="too-many-watchers") == 1


def test_callers_cannot_make_series_by_inventing_paths_and_methods() -> None:
    metrics = ProcessMetrics()
    app = Counting(Answers(404), metrics, ["/a/{b}"])
    for i in range(50):
        ask(app, f"/invented/{i}", f"METHOD{i}")
    assert len(series_of(metrics)["replay_http_requests_total"]) == 1
