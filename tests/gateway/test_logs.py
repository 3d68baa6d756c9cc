"""The log: JSON or lines for people, each with the run, rank and step that it is about."""

import json
import logging
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient

from replay_service.gateway.logs import LogFormat, configure_logs
from tests.gateway.worlds import batch_of, bearer, client_on, create_run, losses_of, make_token, report


class Screen(StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def fresh_logs() -> Iterator[None]:
    """What a test configures ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(monkeypatch: pytest.MonkeyPatch, stream: StringIO, form: LogFormat) -> str:
    """What a line of ours and one of the standard library become."""
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs("info", form)
    structlog.get_logger().info("ours", run="tune")
    structlog.get_logger().debug("too little")
    logging.getLogger("uvicorn").warning("theirs %s", 1)
    try:
        raise ValueError("broken")
    except ValueError as error:
        structlog.get_logger().error("failed", exc_info=error)
    return stream.getvalue()


@pytest.mark.parametrize(("stream", "form"), [(StringIO(), "auto"), (StringIO(), "json"), (Screen(), "json")])
def test_json_has_one_object_a_line(monkeypatch: pytest.MonkeyPatch, stream: StringIO, form: LogFormat) -> None:
    ours, theirs, failed = [json.loads(line) for line in logged(monkeypatch, stream, form).splitlines()]
    assert (ours["event"], ours["run"], ours["level"]) == ("ours", "tune", "info")
    assert theirs["event"] == "theirs 1"
    assert "ValueError: broken" in failed["exception"]


@pytest.mark.parametrize(("stream", "form"), [(Screen(), "auto"), (StringIO(), "console")])
def test_a_terminal_gets_lines_for_people(monkeypatch: pytest.MonkeyPatch, stream: StringIO, form: LogFormat) -> None:
    text = logged(monkeypatch, stream, form)
    assert "{" not in text.partition("Traceback")[0]
    assert all(each in text for each in ("ours", "theirs 1", "ValueError: broken"))
    assert ("\x1b[" in text) == stream.isatty()


def lines_of(capture: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capture.getvalue().splitlines()]


def test_a_line_bears_the_run_rank_and_step_of_its_request_and_of_no_other(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make_token(root, "train")
    capture = StringIO()
    monkeypatch.setattr(sys, "stderr", capture)
    configure_logs("info", "json")
    with client_on(root) as client:
        client.headers.update(bearer(token))
        create_run(client)
        rows = losses_of(batch_of(client, 3, rank=1, world_size=2))
        _log_of(client, "seen")
        report(client, rows)
        client.get("/v1/corpora")
    audits = [each for each in lines_of(capture) if each["event"] == "audit"]
    batch = next(each for each in audits if each["route"].endswith("/batches"))
    assert (batch["run"], batch["rank"], batch["step"]) == ("tune", 1, 3)
    assert "rank" not in next(each for each in lines_of(capture) if each["event"] == "seen")
    assert token not in capture.getvalue()


def _log_of(_client: TestClient, event: str) -> None:
    structlog.get_logger().info(event)
