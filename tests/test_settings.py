from pathlib import Path

import pytest
from pydantic import ValidationError

from replay_service.settings import ServiceLinks, ServiceSettings, load_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServiceSettings.model_fields:
        monkeypatch.delenv(f"REPLAY_{name.upper()}", raising=False)


def toml(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "replay.toml"
    file.write_text(text)
    return file


def test_the_defaults_are_the_embedded_service() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.allow_unauthenticated) == ("127.0.0.1", 8400, False)
    assert settings.corpora == settings.corpora_place == Path("replay-data/corpora")
    assert settings.journal_url == "sqlite:///replay-data/journal.sqlite"


def test_the_file_overrides_the_defaults(tmp_path: Path) -> None:
    settings = load_settings(toml(tmp_path, 'port = 1\nroot = "/srv"'))
    assert (settings.port, settings.root, settings.host) == (1, Path("/srv"), "127.0.0.1")


def test_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_PORT", "2")
    assert load_settings(toml(tmp_path, 'port = 1\nhost = "::1"')).port == 2
    assert load_settings(toml(tmp_path, 'port = 1\nhost = "::1"')).host == "::1"
    assert load_settings().port == 2


def test_a_flag_overrides_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_PORT", "2")
    assert load_settings(toml(tmp_path, "port = 1"), port=3).port == 3


def test_a_flag_that_was_not_given_overrides_nothing(tmp_path: Path) -> None:
    assert load_settings(toml(tmp_path, "port = 1"), port=None).port == 1


def test_the_journal_may_be_elsewhere() -> None:
    assert load_settings(database_url="postgresql://db/replay").journal_url == "postgresql://db/replay"


def test_corpora_may_be_elsewhere() -> None:
    settings = load_settings(corpora_url="s3://bucket/corpora")
    assert (settings.corpora, settings.corpora_place) == (Path("replay-data/corpora"), "s3://bucket/corpora")


def test_an_unknown_key_in_the_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="prot"):
        load_settings(toml(tmp_path, "prot = 1"))


def test_an_unknown_flag_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="prot"):
        load_settings(prot=1)


@pytest.mark.parametrize("port", [-1, 65536, "many", 1.5])
def test_a_port_that_is_none_is_refused(port: object) -> None:
    with pytest.raises(ValidationError, match="port"):
        load_settings(port=port)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_body_bytes", 10),
        ("max_steps_per_request", 0),
        ("max_steps_ahead", 0),
        ("drain_timeout_s", 0),
        ("database_timeout_s", 0.9),
        ("database_timeout_s", 3601),
        ("shutdown_delay_s", -1),
        ("max_response_bytes", 1000),
        ("log_level", "loud"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        load_settings(**{name: value})


def test_a_wrong_value_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_PORT", "many")
    with pytest.raises(ValidationError, match="port"):
        load_settings()


@pytest.mark.parametrize("variable", ["REPLAY_PORT", "REPLAY_HOST_PORT"])
def test_what_kubernetes_sets_for_a_service_of_that_name_is_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "tcp://10.96.0.17:8400")
    with pytest.raises(ServiceLinks, match=f"{variable} is tcp://10.96.0.17:8400, .*enableServiceLinks: false"):
        load_settings()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.toml"):
        load_settings(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"port = = 1", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "replay.toml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"replay\.toml is no TOML file"):
        load_settings(file)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    for name, field in ServiceSettings.model_fields.items():
        assert field.description, name


def test_a_database_url_that_is_none_is_named() -> None:
    with pytest.raises(ValidationError, match="is no SQLAlchemy URL"):
        load_settings(database_url="journal.sqlite")
