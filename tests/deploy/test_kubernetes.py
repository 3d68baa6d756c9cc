"""The manifests, without a cluster: their schemas, what they refer to, and every command and setting that they name."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from replay_service.settings import ENV_PREFIX, ServiceSettings, load_settings
from tests.deploy.compose import ROOT, check_command

FOLDER = ROOT / "deploy/kubernetes"
VERSION = "1.32"
KUSTOMIZATION = yaml.safe_load((FOLDER / "base/kustomization.yaml").read_text())
FOREIGN = ("RayCluster", "RayJob", "ServiceMonitor")
"""Kinds whose schemas are not of Kubernetes itself."""
GIVEN_BY_THE_OPERATOR = {"replay", "storage", "replay-trainer", "replay-metrics"}
"""Secrets; deploy/README.md says how to make them."""


def documents() -> list[dict[str, Any]]:
    paths = [*(FOLDER / "base" / name for name in KUSTOMIZATION["resources"]), *(FOLDER / "jobs").glob("*.yaml")]
    return [each for path in paths for each in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [each for each in documents() if each["kind"] == kind]


def pod_templates() -> dict[str, dict[str, Any]]:
    """Every pod template, by what it is for."""
    (deployment,), (cluster,) = of_kind("Deployment"), of_kind("RayCluster")
    groups = {group["groupName"]: group["template"] for group in cluster["spec"]["workerGroupSpecs"]}
    return {"replay": deployment["spec"]["template"], "head": cluster["spec"]["headGroupSpec"]["template"], **groups}


PODS = pod_templates()


def settings_given() -> dict[str, str]:
    """Those of the service."""
    (settings,) = [each for each in KUSTOMIZATION["configMapGenerator"] if each["name"] == "replay-settings"]
    return dict(each.split("=", 1) for each in settings["literals"])


def values(found: Any, name: str) -> Iterator[Any]:
    """Every value under a key, however deep."""
    for key, value in found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ():
        if key == name:
            yield value
        yield from values(value, name)


@pytest.mark.parametrize(
    "document", [each for each in documents() if each["kind"] not in FOREIGN], ids=lambda d: d["kind"]
)
def test_every_object_of_kubernetes_has_its_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_every_pod_template_has_its_schema(name: str) -> None:
    labels = {"app": "any"}
    template = {"metadata": {"labels": labels}, **PODS[name]}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    any_deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "any"}, "spec": spec}
    kubernetes_validate.validate(any_deployment, VERSION, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_hardened_and_deaf_to_service_links(name: str) -> None:
    spec = PODS[name]["spec"]
    assert spec["enableServiceLinks"] is False
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"livenessProbe", "readinessProbe"} <= set(container)
    assert all(volume.get("secret", {}).get("defaultMode", 0o440) == 0o440 for volume in spec["volumes"])


@pytest.mark.parametrize("name", PODS)
def test_what_a_pod_refers_to_is_there(name: str) -> None:
    spec = PODS[name]["spec"]
    volumes = {each["name"] for each in spec["volumes"]}
    for container in spec["containers"]:
        assert {each["name"] for each in container["volumeMounts"]} == volumes
        ports = {each["name"] for each in container.get("ports", [])}
        assert {port for port in values(container, "port") if isinstance(port, str)} <= ports
        assert container["image"] in {each["name"] for each in KUSTOMIZATION["images"]}
    maps = {each["name"] for each in KUSTOMIZATION["configMapGenerator"]}
    assert {each["name"] for each in values(spec, "configMapRef")} <= maps
    assert set(values(spec, "secretName")) <= GIVEN_BY_THE_OPERATOR
    claims = {each["metadata"]["name"] for each in of_kind("PersistentVolumeClaim")}
    assert set(values(spec, "claimName")) <= claims


def test_every_secret_is_explained() -> None:
    readme = (ROOT / "deploy/README.md").read_text()
    for name in GIVEN_BY_THE_OPERATOR:
        assert re.search(rf"kubectl .*create secret generic {name}( |$)", readme, re.MULTILINE), name


def test_every_setting_exists_and_makes_a_replica_of_a_cluster() -> None:
    given = settings_given()
    names = {name.removeprefix(ENV_PREFIX).lower() for name in given}
    assert names <= set(ServiceSettings.model_fields)
    settings = ServiceSettings.model_validate({name.removeprefix(ENV_PREFIX).lower(): given[name] for name in given})
    assert settings.cluster and settings.cluster_secret_file is not None and settings.corpora_url is not None
    (container,) = PODS["replay"]["spec"]["containers"]
    folders = [each["mountPath"] for each in container["volumeMounts"]]
    paths = [value for name, value in given.items() if name.endswith("_FILE")]
    assert paths and all(str(Path(path).parent) in folders for path in paths)
    own = [each["name"] for each in container["env"] if each["name"].startswith(ENV_PREFIX)]
    assert all(name.removeprefix(ENV_PREFIX).lower() in ServiceSettings.model_fields for name in own)
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": settings.port, "owner": settings.owner_port}
    owner = {each["name"]: each.get("value") for each in container["env"]}["REPLAY_OWNER_ADDRESS"]
    assert owner == f"$(POD_IP):{settings.owner_port}"


def test_a_replica_is_given_time_to_stop() -> None:
    spec, given = PODS["replay"]["spec"], settings_given()
    (container,) = spec["containers"]
    (seconds,) = re.findall(r"sleep\((\d+)\)", " ".join(container["lifecycle"]["preStop"]["exec"]["command"]))
    needed = int(seconds) + float(given["REPLAY_SHUTDOWN_DELAY_S"]) + load_settings().drain_timeout_s
    assert spec["terminationGracePeriodSeconds"] > needed


def test_every_command_exists() -> None:
    (container,) = PODS["replay"]["spec"]["containers"]
    check_command(["replay-service", *container["args"]])
    for job in of_kind("RayJob"):
        words = shlex.split(job["spec"]["entrypoint"])
        if words[0] == "bash":
            words = shlex.split(words[-1].partition("&&")[2])
        check_command(words)


def test_selectors_select_what_there_is() -> None:
    (deployment,), (service,), (monitor,), (budget,) = map(
        of_kind, ("Deployment", "Service", "ServiceMonitor", "PodDisruptionBudget")
    )
    labels = PODS["replay"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in {each["name"] for each in service["spec"]["ports"]}
    (cluster,) = of_kind("RayCluster")
    for job in of_kind("RayJob"):
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
        assert job["metadata"]["namespace"] == KUSTOMIZATION["namespace"]


def test_only_replicas_reach_the_port_of_the_owner() -> None:
    policy = next(each for each in of_kind("NetworkPolicy") if each["metadata"]["name"] == "replay")
    rules = {each["ports"][0]["port"]: each.get("from") for each in policy["spec"]["ingress"]}
    assert rules["http"] is None
    assert rules["owner"] == [{"podSelector": policy["spec"]["podSelector"]}]


def test_ray_is_the_one_of_the_image() -> None:
    (cluster,) = of_kind("RayCluster")
    assert f"ray=={cluster['spec']['rayVersion']}" in (ROOT / "deploy/constraints.txt").read_text().splitlines()


@pytest.mark.parametrize("name", ["head", "workers"])
def test_ray_finds_the_memory_that_it_shares(name: str) -> None:
    (cluster,) = of_kind("RayCluster")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    group = next(each for each in groups if each.get("groupName", "head") == name)
    (limit,) = values(group["template"], "sizeLimit")
    assert int(group["rayStartParams"]["object-store-memory"]) < int(limit.removesuffix("Gi")) << 30
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize(("overlay", "gpus"), [("cpu", None), ("gpu", "1")])
def test_an_overlay_is_rendered(overlay: str, gpus: str | None) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders kustomizations, is not installed")
    command = ["kubectl", "kustomize", str(FOLDER / overlay)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = list(yaml.safe_load_all(rendered))
    assert all(each["metadata"].get("namespace") == "replay" for each in found)
    (cluster,) = [each for each in found if each["kind"] == "RayCluster"]
    (workers,) = cluster["spec"]["workerGroupSpecs"]
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == gpus
    maps = {each["metadata"]["name"] for each in found if each["kind"] == "ConfigMap"}
    assert {each["name"] for each in values(found, "configMapRef")} == maps
    images = {each for each in values(found, "image") if isinstance(each, str)}
    assert images == {"replay-service:latest", "replay-service:ray"}
