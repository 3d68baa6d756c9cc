import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from replay_service.settings import ENV_PREFIX, ServiceSettings, load_settings
from tests.deploy.compose import (
    ALONE,
    CLUSTER,
    NETWORK,
    OURS,
    ROOT,
    check_command,
    command_lines,
    content_of,
    services_of,
)

WHOLE = (ALONE, CLUSTER)
"""Files that stand alone."""
EVERY = [(path.name, name) for path in WHOLE for name in services_of(path)]
OF_OURS = [
    (path.name, name)
    for path in (ALONE, NETWORK, CLUSTER)
    for name, service in services_of(path).items()
    if service.get("image", OURS[0]) in OURS
]


def service(file: str, name: str) -> dict[str, Any]:
    return services_of(ROOT / file)[name]


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
def test_the_file_is_valid(path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("file", "name"), OF_OURS)
def test_every_command_exists_and_takes_its_options(file: str, name: str) -> None:
    for words in command_lines(service(file, name)):
        if words[0] == "python":
            compile(words[-1] if words[1] == "-c" else "", name, "exec")
        else:
            check_command([re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in words])


@pytest.mark.parametrize(("file", "name"), OF_OURS)
def test_every_setting_in_an_environment_exists_and_can_be_read(file: str, name: str) -> None:
    environment = service(file, name).get("environment", {})
    for variable in environment:
        if variable.startswith(ENV_PREFIX):
            assert variable.removeprefix(ENV_PREFIX).lower() in ServiceSettings.model_fields, variable
    if "REPLAY_ALLOWED_HOSTS" in environment:
        assert name in json.loads(environment["REPLAY_ALLOWED_HOSTS"])


@pytest.mark.parametrize(("file", "name"), EVERY)
def test_what_a_service_names_is_there(file: str, name: str) -> None:
    """Files that are mounted, volumes, and the services that it waits for."""
    content, each = content_of(ROOT / file), service(file, name)
    for mount in each.get("volumes", []):
        source = mount.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in content["volumes"], mount
    assert set(each.get("depends_on", {})) <= set(content["services"])
    if "build" in each:
        assert (ROOT / each["build"]["context"] / each["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
def test_every_volume_is_used(path: Path) -> None:
    used = {mount.split(":")[0] for each in services_of(path).values() for mount in each.get("volumes", [])}
    assert set(content_of(path)["volumes"]) == {each for each in used if not each.startswith(".")}


def test_names_of_others_are_those_of_services() -> None:
    """Hosts in URLs, addresses and scrapes of the cluster."""
    text = CLUSTER.read_text() + (ROOT / "deploy/prometheus/prometheus.cluster.yml").read_text()
    code = "\n".join(line for line in text.splitlines() if not line.strip().startswith("#"))
    hosts = set(re.findall(r"(?:https?://|@|--address[=,] *\"?)([a-z][a-z-]+)[:/]", code)) | {"replica"}
    assert hosts <= set(services_of(CLUSTER)), hosts
    assert {"database", "storage", "ray-head"} <= hosts


@pytest.mark.parametrize(("file", "name"), EVERY)
def test_only_loopback_is_published(file: str, name: str) -> None:
    assert all(each.startswith("127.0.0.1:") for each in service(file, name).get("ports", []))


@pytest.mark.parametrize(("file", "name"), EVERY)
def test_every_container_is_hardened(file: str, name: str) -> None:
    each = service(file, name)
    assert each["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in each
    if name not in ("database", "storage"):  # these change to a user of their own, and write where they are
        assert each["read_only"] is True
        assert each["cap_drop"] == ["ALL"]
        assert "/tmp" in each["tmpfs"]


def test_what_other_machines_can_reach_asks_for_tokens_over_tls() -> None:
    (network,) = services_of(NETWORK).values()
    assert "--allow-unauthenticated" not in network["command"]
    assert network["ports"] == ["8400:8400"]
    (mount,) = network["volumes"]
    source, folder, mode = mount.split(":")
    given = {name: value for name, value in network["environment"].items() if name != "REPLAY_ROOT"}
    assert set(given) == {"REPLAY_TOKENS_FILE", "REPLAY_TLS_CERTIFICATE", "REPLAY_TLS_KEY"}
    assert all(value.startswith(f"{folder}/") for value in given.values())
    assert mode == "ro"
    assert f"{source.removeprefix('.')}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_service_for_other_machines_is_the_same_one_so_that_down_ends_it() -> None:
    assert set(services_of(NETWORK)) <= set(services_of(ALONE))
    assert "profiles" not in services_of(ALONE)["replay-service"]
    assert NETWORK.read_text().count("!override") == 3


@pytest.mark.parametrize(("file", "name"), [(ALONE.name, "replay-service"), (CLUSTER.name, "replica")])
def test_the_service_comes_back_and_is_given_time_to_drain(file: str, name: str) -> None:
    each, settings = service(file, name), load_settings()
    assert each["restart"] == "unless-stopped"
    assert int(each["stop_grace_period"].removesuffix("s")) > settings.drain_timeout_s + settings.shutdown_delay_s
    assert "healthcheck" not in each  # the image has one
    assert each["build"]["target"] == "service"


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
def test_what_is_extra_starts_only_when_it_is_asked_for(path: Path) -> None:
    profiles = {name: each.get("profiles", [""])[0] for name, each in services_of(path).items()}
    assert profiles["prometheus"] == profiles["grafana"] == "metrics"
    assert {name for name, profile in profiles.items() if profile == "demo"} & {"demo", "trainer"}
    example = (ROOT / ".env.example").read_text()
    assert all(profile in example for profile in set(profiles.values()) - {""})


def test_the_example_of_an_environment_names_files_and_variables_that_there_are() -> None:
    example = (ROOT / ".env.example").read_text()
    for files in re.findall(r"^#?COMPOSE_FILE=(.+)$", example, re.MULTILINE):
        assert all((ROOT / each).is_file() for each in files.split(":"))
    named = set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE)) - {"COMPOSE_FILE", "COMPOSE_PROFILES"}
    text = "".join(path.read_text() for path in WHOLE)
    used = set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"^ +([A-Z_]+):$", text, re.MULTILINE))
    assert named == used


def test_the_trainer_reads_what_was_prepared_and_asks_the_service() -> None:
    services = services_of(ALONE)
    folder = services["prepare"]["command"][-1]
    _, job, _, url = services["trainer"]["command"]
    assert job == f"{folder}/trainer.toml"
    assert url == "http://replay-service:8400"
    assert services["trainer"]["depends_on"] == {
        "prepare": {"condition": "service_completed_successfully"},
        "replay-service": {"condition": "service_healthy"},
    }
    prepare, train = command_lines(services_of(CLUSTER)["demo"])
    assert train[-1] == f"{prepare[prepare.index('--folder') + 1]}/trainer.toml"


def test_in_a_cluster_all_read_and_write_one_object_storage() -> None:
    services = services_of(CLUSTER)
    shared = ("REPLAY_CORPORA_URL", "AWS_ENDPOINT_URL", "AWS_SHARED_CREDENTIALS_FILE")
    for name in ("replica", "ray-head", "ray-worker"):
        assert [services[name]["environment"][each] for each in shared] == [
            services["bucket"]["environment"][each] for each in shared
        ]
    assert services["replica"]["environment"]["REPLAY_CORPORA_URL"].startswith("s3://replay/")


def test_every_secret_of_the_cluster_is_a_file_that_is_made_and_no_variable(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run([sys.executable, ROOT / "deploy/make_secrets.py", tmp_path], check=True)
    made = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    named = set(re.findall(r"/run/replay/([\w/-]+)", CLUSTER.read_text()))
    assert named == set(made)
    for name, path in made.items():
        assert path.stat().st_mode & 0o777 == (0o644 if name.startswith("for-others/") else 0o600), name
    assert len(made["cluster-secret"].read_text()) >= 32
    password = made["for-others/database-password"].read_text()
    assert made["database-passfile"].read_text() == f"*:*:*:*:{password}\n"
    assert made["for-others/storage-password"].read_text() in made["aws-credentials"].read_text()


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
def test_each_image_of_ours_is_built_once_and_pulled_by_nobody(path: Path) -> None:
    """Two builds of one name would give two images, and what runs on the first would be made anew at the next start."""
    ours = [each for each in services_of(path).values() if each["image"] in OURS]
    assert sorted(each["image"] for each in ours if "build" in each) == sorted({each["image"] for each in ours})
    assert all(each["pull_policy"] == "never" for each in ours if "build" not in each)


def test_foreign_images_have_a_version() -> None:
    for path in WHOLE:
        for each in services_of(path).values():
            if each["image"] not in OURS:
                assert re.fullmatch(r"([a-z]+/)?[a-z]+:v?(\d+\.\d+(\.\d+)?|RELEASE\.[\dTZ-]+)", each["image"])


@pytest.mark.parametrize(("path", "target"), [(ALONE, "replay-service"), (CLUSTER, "replica")])
def test_prometheus_scrapes_the_service_under_a_name_that_it_answers_to(path: Path, target: str) -> None:
    services = services_of(path)
    (config,) = [m.split(":")[0] for m in services["prometheus"]["volumes"] if "prometheus.yml:" in m]
    (job,) = yaml.safe_load((ROOT / config).read_text())["scrape_configs"]
    if "static_configs" in job:
        name, _, port = job["static_configs"][0]["targets"][0].partition(":")
    else:
        name, port = job["dns_sd_configs"][0]["names"][0], job["dns_sd_configs"][0]["port"]
    assert name == target and name in services
    assert str(port) == str(ServiceSettings.model_fields["port"].default)


def test_grafana_asks_the_prometheus_of_these_files() -> None:
    folder = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((folder / "dashboards/replay.yml").read_text())["providers"]
    for path in WHOLE:
        mounts = dict(each.split(":")[1::-1] for each in services_of(path)["grafana"]["volumes"])
        assert (ROOT / mounts[provider["options"]["path"]] / "replay-service.json").is_file()
