import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from replay_service import __version__
from replay_service.cli import app
from replay_trainer.cli import app as trainer_app

COMMANDS = (
    "ingest",
    "serve",
    "up",
    "status",
    "down",
    "plan",
    "demo",
    "events",
    "samples",
    "top",
    "runs",
    "runs show",
    "runs set",
    "config show",
    "corpus list",
    "corpus describe",
    "corpus sample",
    "corpus upload",
    "journal verify",
    "journal export",
    "token create",
    "token list",
    "token revoke",
)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def commands() -> dict[str, Any]:
    """The sub-commands by name, as the parser sees them."""
    group: Any = typer.main.get_command(app)
    nested: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        if inner is None or command.invoke_without_command:
            nested[name] = command
        nested |= {f"{name} {each}": found for each, found in (inner or {}).items()}
    return nested


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(name.split()[0] in result.output for name in COMMANDS)
    assert set(commands()) == set(COMMANDS)


def test_both_commands_say_their_version() -> None:
    for command in (app, trainer_app):
        result = CliRunner().invoke(command, ["--version"])
        assert (result.exit_code, result.output) == (0, f"{__version__}\n")


def test_no_argument_at_all_shows_the_help() -> None:
    assert "Usage" in run().output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_explained_in_its_help(name: str) -> None:
    result = run(*name.split(), "--help")
    assert result.exit_code == 0
    for parameter in commands()[name].params:
        assert parameter.help, f"{parameter.name} has no help"
        assert parameter.opts[0] in result.output


def test_the_module_runs_as_the_command_does() -> None:
    result = subprocess.run([sys.executable, "-m", "replay_service", "--help"], capture_output=True, check=False)
    assert result.returncode == 0
    assert b"serve" in result.stdout


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_serving_beyond_loopback_must_be_asked_for(tmp_path: Path, host: str) -> None:
    result = run("serve", "--root", tmp_path / "new", "--host", host)
    assert result.exit_code == 2
    assert "--allow-unauthenticated" in result.output
    assert not (tmp_path / "new").exists()


def test_serving_beyond_loopback_by_a_file_must_be_asked_for_too(tmp_path: Path) -> None:
    (tmp_path / "replay.toml").write_text('host = "0.0.0.0"')
    assert run("serve", "--config", tmp_path / "replay.toml").exit_code == 2


@pytest.mark.parametrize(("content", "named"), [("# nobody", "token create"), ("", "damaged"), (None, "mine.toml")])
def test_serving_beyond_loopback_takes_a_token_at_least(tmp_path: Path, content: str | None, named: str) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_text(content)
    result = run("serve", "--root", tmp_path / "new", "--host", "0.0.0.0", "--tokens-file", path)
    assert result.exit_code == 2
    assert named in result.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "99999"], "port"),
        (["--port", "many"], "--port"),
        (["--log-level", "loud"], "--log-level"),
        (["--config", "/nowhere/replay.toml"], "/nowhere/replay.toml"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_a_wrong_option_ends_with_a_message(arguments: list[str], named: str) -> None:
    result = run("serve", *arguments)
    assert result.exit_code == 2
    assert named in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("text", "named"), [("prot = 1", "prot"), ("port = = 1", "replay.toml")])
def test_a_wrong_configuration_file_ends_with_a_message(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "replay.toml").write_text(text)
    for arguments in (["serve"], ["ingest", str(tmp_path), "--corpus", "wiki", "--model", "tiny"]):
        result = run(*arguments, "--config", tmp_path / "replay.toml")
        assert result.exit_code == 2
        assert named in result.output
        assert "Traceback" not in result.output


def test_ingesting_what_is_not_there_ends_with_one_line(tmp_path: Path) -> None:
    result = run("ingest", tmp_path / "none", "--corpus", "wiki", "--model", "tiny", "--root", tmp_path / "new")
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert str(tmp_path / "none") in line
    assert not (tmp_path / "new").exists()


def test_ingesting_from_a_url_that_leads_nowhere_ends_with_one_line_without_its_secrets() -> None:
    result = run("ingest", "nosuch://somebody:swordfish@host/data", "--corpus", "wiki", "--model", "tiny")
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    assert "nosuch://host/data cannot be read" in result.output
    assert "swordfish" not in result.output


def test_ingesting_a_folder_without_shards_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    result = run("ingest", tmp_path, "--corpus", "wiki", "--model", "tiny")
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    assert ".parquet" in result.output


@pytest.mark.parametrize("missing", ["--corpus", "--model"])
def test_ingest_says_which_option_it_lacks(tmp_path: Path, missing: str) -> None:
    options = {"--corpus": "wiki", "--model": "tiny"}
    del options[missing]
    result = run("ingest", tmp_path, *(part for option in options.items() for part in option))
    assert result.exit_code == 2
    assert missing in result.output
