"""What makes a service a replica of a cluster, and what is refused before it serves."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from replay_service.gateway.processes.replica import UnusableSecret, address_of, reachable_host, read_secret
from replay_service.settings import ServiceSettings

DATABASE = "postgresql+psycopg://replay@127.0.0.1/replay"


def settings_of(path: Path, **others: object) -> ServiceSettings:
    return ServiceSettings(cluster=True, database_url=DATABASE, cluster_secret_file=path, **others)  # type: ignore[arg-type]


def secret_file(folder: Path, text: str = "s" * 32, mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_secret_is_read_without_its_end_of_line(tmp_path: Path) -> None:
    assert read_secret(secret_file(tmp_path, "0123456789" * 4 + "\n", 0o640)) == "0123456789" * 4


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("short", 0o600, "holds 5 characters; at least 32"),
        ("s" * 40, 0o644, "open to every user"),
        ("é" * 40, 0o600, "at least 32 of printable ASCII"),
    ],
)
def test_a_secret_that_can_be_guessed_or_read_is_refused(tmp_path: Path, text: str, mode: int, said: str) -> None:
    with pytest.raises(UnusableSecret, match=said) as refused:
        read_secret(secret_file(tmp_path, text, mode))
    assert text not in str(refused.value)


def test_a_missing_secret_is_refused_with_a_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UnusableSecret, match="openssl rand -hex 32"):
        read_secret(tmp_path / "none")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cluster": True, "cluster_secret_file": "x"}, "set database_url to one of PostgreSQL"),
        ({"cluster": True, "cluster_secret_file": "x", "database_url": "sqlite:///x"}, "of PostgreSQL"),
        ({"cluster": True, "database_url": DATABASE}, "cluster needs cluster_secret_file"),
        ({"owner_address": "replica-1"}, "is no host:port"),
        ({"owner_address": "replica-1:0"}, "is no host:port"),
    ],
)
def test_settings_that_make_no_cluster_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ServiceSettings(**settings)  # type: ignore[arg-type]


def test_others_are_told_this_hosts_address_on_its_way_to_the_database(tmp_path: Path) -> None:
    path = secret_file(tmp_path)
    assert address_of(settings_of(path), 8401) == "127.0.0.1:8401"
    assert address_of(settings_of(path, owner_address="replica-1:9000"), 8401) == "replica-1:9000"
    assert address_of(settings_of(path, owner_host="::1"), 8401) == "[::1]:8401"
    assert reachable_host("0.0.0.0") == "127.0.0.1" and reachable_host("::1") == "[::1]"
