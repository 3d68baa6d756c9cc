"""The command line as a person meets it: what a command prints, and its exit code."""

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from replay_service.cli import app


def run(*arguments: str | Path | int | float) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def assert_message(result: Any, *named: str) -> None:
    """The command ended with exit code 2 and a message that names these things, and not with a traceback."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    for each in named:
        assert each in result.output
