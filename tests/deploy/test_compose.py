import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import replay_service.cli
import replay_trainer.cli
from replay_service.settings import ServiceSettings, load_settings

ROOT = Path(__file__).parents[2]
FOREIGN = ("prometheus", "grafana")
"""Services whose images are not ours."""
COMPOSE = ROOT / "docker-compose.yml"
PROGRAMS = {"replay-service": replay_service.cli.app, "replay-trainer": replay_trainer.cli.app}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Those of our own image."""
    return {name: each for name, each in all_services().items() if name not in FOREIGN}


def all_services() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return content


def test_the_file_is_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["replay-service", "network", "prepare", "trainer"])
def test_every_service_runs_a_command_that_exists(services: dict[str, Any], name: str) -> None:
    service = services[name]
    (program,) = service.get("entrypoint", ["replay-service"])
    command, *arguments = service["command"]
    group: Any = typer.main.get_command(PROGRAMS[program])
    context = group.commands[command].make_context(command, [str(each) for each in arguments])
    assert context.params


def test_the_service_listens_beyond_the_container_and_is_published_on_loopback_only(services: dict[str, Any]) -> None:
    assert "0.0.0.0" in services["replay-service"]["command"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"replay-service": ["127.0.0.1:8400:8400"], "network": ["8400:8400"]}


def test_what_other_machines_can_reach_asks_for_tokens_over_tls(services: dict[str, Any]) -> None:
    network = services["network"]
    assert network["profiles"] == ["network"]
    assert "--allow-unauthenticated" not in network["command"]
    secrets = yaml.safe_load(COMPOSE.read_text())["secrets"]
    given = {name: value for name, value in network["environment"].items() if name != "REPLAY_ROOT"}
    assert given == {
        "REPLAY_TOKENS_FILE": "/run/secrets/tokens",
        "REPLAY_TLS_CERTIFICATE": "/run/secrets/certificate",
        "REPLAY_TLS_KEY": "/run/secrets/key",
    }
    assert [Path(value).name for value in given.values()] == network["secrets"] == list(secrets)
    for name in given:
        assert name.removeprefix("REPLAY_").lower() in ServiceSettings.model_fields


def test_secrets_are_in_no_commit() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for secret in yaml.safe_load(COMPOSE.read_text())["secrets"].values():
        assert {secret["file"], f"*{Path(secret['file']).suffix}"} & set(ignored)


def test_every_container_is_hardened() -> None:
    for name, service in all_services().items():
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "/tmp" in service["tmpfs"], name
        assert "privileged" not in service, name


def test_all_share_the_data_in_one_named_volume(services: dict[str, Any]) -> None:
    assert set(yaml.safe_load(COMPOSE.read_text())["volumes"]) == {"data", *FOREIGN}
    for service in services.values():
        assert service["volumes"] == ["data:/data"]
        assert service["environment"]["REPLAY_ROOT"] == "/data"


def test_the_service_comes_back_and_is_given_time_to_drain(services: dict[str, Any]) -> None:
    for service in (services["replay-service"], services["network"]):
        assert service["restart"] == "unless-stopped"
        assert "/readyz" in service["healthcheck"]["test"][-1]
        assert int(service["stop_grace_period"].removesuffix("s")) > load_settings().drain_timeout_s


def test_the_demo_starts_only_when_it_is_asked_for(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "profiles" not in service} == {"replay-service"}
    assert all(services[name]["profiles"] == ["demo"] for name in ("prepare", "trainer"))


def test_the_trainer_waits_for_its_job_and_for_the_service(services: dict[str, Any]) -> None:
    assert services["trainer"]["depends_on"] == {
        "prepare": {"condition": "service_completed_successfully"},
        "replay-service": {"condition": "service_healthy"},
    }


def test_the_trainer_reads_what_was_prepared_and_asks_the_service(services: dict[str, Any]) -> None:
    folder = services["prepare"]["command"][-1]
    _, job, _, url = services["trainer"]["command"]
    assert job == f"{folder}/trainer.toml"
    assert url == "http://replay-service:8400"


def test_every_image_is_built_from_the_dockerfile(services: dict[str, Any]) -> None:
    for service in services.values():
        assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert services["trainer"]["build"]["args"] == {"EXTRA": "demo"}


def test_what_watches_the_service_is_started_only_when_it_is_asked_for_and_reached_from_this_machine_only() -> None:
    services = all_services()
    for name in FOREIGN:
        assert services[name]["profiles"] == ["metrics"]
        assert all(each.startswith("127.0.0.1:") for each in services[name]["ports"])
        # A version, and not whatever is the latest.
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", services[name]["image"])


def test_what_watches_the_service_finds_its_files_and_may_not_write_them() -> None:
    services = all_services()
    for name in FOREIGN:
        folder = f"{name}:"
        mounts = [each.split(":") for each in services[name]["volumes"] if not each.startswith(folder)]
        assert mounts
        for source, _, mode in mounts:
            assert (ROOT / source).exists()
            assert mode == "ro"


def test_prometheus_scrapes_the_service_under_a_name_that_it_answers_to() -> None:
    services = all_services()
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    name, _, port = target.partition(":")
    assert name in services
    assert name in json.loads(services[name]["environment"]["REPLAY_ALLOWED_HOSTS"])
    assert port == str(ServiceSettings.model_fields["port"].default)


def test_grafana_asks_the_prometheus_of_this_file() -> None:
    folder = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((folder / "dashboards/replay.yml").read_text())["providers"]
    mounts = dict(each.split(":")[1::-1] for each in all_services()["grafana"]["volumes"])
    assert (ROOT / mounts[provider["options"]["path"]] / "replay-service.json").is_file()
