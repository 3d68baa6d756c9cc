"""`replay-service config show`: the settings in force, and where each comes from."""

import json
from pathlib import Path

import pytest

from replay_service.settings import ServiceSettings
from tests.cli.worlds import assert_message, run


def test_every_setting_is_shown_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "replay.toml"
    path.write_text('port = 8401\nhost = "localhost"\ngateways = 2\n')
    monkeypatch.setenv("REPLAY_GATEWAYS", "3")
    monkeypatch.setenv("replay_log_level", "debug")
    result = run("config", "show", "--config", path, "--host", "127.0.0.2", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == set(ServiceSettings.model_fields)
    assert found["host"] == {"value": "127.0.0.2", "source": "--host"}
    assert found["gateways"] == {"value": 3, "source": "REPLAY_GATEWAYS"}
    assert found["log_level"] == {"value": "debug", "source": "replay_log_level"}
    assert found["port"] == {"value": 8401, "source": str(path)}
    assert found["io_timeout_s"] == {"value": 60.0, "source": "default"}


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_DATABASE_URL", "postgresql+psycopg://me:p@ss/word@db:5432/replay?sslpassword=hidden")
    monkeypatch.setenv("REPLAY_CORPORA_URL", "s3://key:hidden@bucket/corpora?token=hidden")
    monkeypatch.setenv("REPLAY_INGEST_FROM", '["/data", "https://u:hidden@host/x?sig=hidden"]')
    monkeypatch.setenv("REPLAY_TRACE_TO", "https://u:hidden@host/v1/traces?key=hidden")
    for arguments in ([], ["--json"]):
        shown = run("config", "show", *arguments).stdout
        assert "hidden" not in shown
        assert "p@ss" not in shown
        assert "word@" not in shown
        assert "postgresql+psycopg://***@db:5432/replay?***" in shown
    assert '"/data"' in run("config", "show").stdout


def test_wrong_settings_end_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "replay.toml").write_text("prot = 1")
    assert_message(run("config", "show", "--config", tmp_path / "replay.toml"), "prot")
    assert_message(run("config", "show", "--config", tmp_path / "none.toml"), "none.toml")
