import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from replay_service.cli import app
from replay_service.settings import load_settings
from tests.certificates import certificate_in
from tests.support import free_port, running_service

ROOT = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, in order; continued lines are joined."""
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line and line[0] != "#")]


def arguments_of(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage, with those of the stages that it begins from."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for each, rest in instructions():
        if each == "FROM":
            image, _, at = rest.partition(" AS ")
            current = stages[at] = list(stages.get(image, []))
        else:
            current.append((each, rest))
    return stages[name]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def copied() -> list[str]:
    return [source for rest in arguments_of("COPY") for source in shlex.split(rest)[:-1]]


@pytest.mark.parametrize("source", copied())
def test_what_is_copied_exists_and_is_in_the_build_context(source: str) -> None:
    assert (ROOT / source).exists()
    assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_nothing_else_is_in_the_build_context() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())


def test_the_image_holds_what_the_package_needs_to_be_built() -> None:
    needed = {"pyproject.toml", project()["readme"], *project()["license-files"]}
    assert {each for each in needed if each.partition("/")[0] not in copied()} == set()


def test_the_image_is_of_a_python_that_the_project_supports() -> None:
    image, *others = [each.partition(" AS ")[0] for each in arguments_of("FROM")]
    assert others == ["base", "base"]
    name, _, version = image.partition(":")
    assert name == "python"
    least = project()["requires-python"].removeprefix(">=")
    assert [int(part) for part in version.removesuffix("-slim").split(".")] >= [int(part) for part in least.split(".")]


@pytest.mark.parametrize(("target", "extra"), [("service", "server,text,postgresql"), ("ray", "node")])
def test_the_project_is_installed_with_its_constraints_and_the_extra_asked_for(target: str, extra: str) -> None:
    dependencies, source = [rest for name, rest in stage(target) if name == "RUN" and "pip install" in rest]
    assert 'pip install -c deploy/constraints.txt ".${EXTRA:+[${EXTRA}]}"' in dependencies
    assert source.startswith("pip install --no-deps --force-reinstall . ")
    assert ("ARG", f'EXTRA="{extra}"') in stage(target)
    assert set(extra.split(",")) <= set(project()["optional-dependencies"])


@pytest.mark.parametrize("target", ["service", "ray"])
def test_dependencies_are_installed_before_the_source_is_copied(target: str) -> None:
    """So a change of the source, or of the README, leaves their layer as it is."""
    steps = [f"{name} {rest}" for name, rest in stage(target) if name in ("COPY", "RUN")]
    installs = [index for index, step in enumerate(steps) if "pip install" in step]
    sources = ["COPY README.md README.md", "COPY replay_service replay_service", "COPY trainer trainer"]
    assert steps[installs[0] + 1 : installs[1]] == sources


@pytest.mark.parametrize("target", ["service", "ray"])
def test_no_installation_takes_files_of_the_one_before(target: str) -> None:
    """The first one builds empty packages, which are newer than the files that are copied after it."""
    installs = [rest for name, rest in stage(target) if name == "RUN" and "pip install" in rest]
    assert all("&& rm -r build" in each for each in installs)
    assert installs[-1].endswith("&& replay-service --version")


def test_arguments_name_indexes_and_none_is_set() -> None:
    assert {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"} <= set(arguments_of("ARG"))
    assert ("ARG", "TORCH_INDEX_URL") in stage("ray")


def test_a_node_of_ray_has_its_dashboard_and_agents() -> None:
    (node,) = [each for each in project()["optional-dependencies"]["node"] if each.startswith("ray[")]
    assert node.startswith("ray[default]")


@pytest.mark.parametrize("target", ["service", "ray"])
def test_nothing_runs_as_root_and_the_user_is_a_number(target: str) -> None:
    names = [name for name, _ in stage(target)]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert ("USER", "10001:10001") in stage(target)
    assert "RUN" not in names[names.index("USER") :]
    (made,) = [rest for name, rest in stage(target) if name == "RUN" and "useradd" in rest]
    assert "--uid 10001" in made


def test_the_entrypoint_and_its_command_exist() -> None:
    entrypoint, command = dict(stage("service"))["ENTRYPOINT"], dict(stage("service"))["CMD"]
    assert json.loads(entrypoint)[0] in project()["scripts"]
    group: Any = typer.main.get_command(app)
    assert json.loads(command)[0] in group.commands


def test_the_port_that_is_exposed_is_the_one_served() -> None:
    assert dict(stage("service"))["EXPOSE"].split()[0] == str(load_settings().port)


def test_the_health_check_is_a_program_that_asks_whether_the_service_is_ready(tmp_path: Path) -> None:
    (check,) = arguments_of("HEALTHCHECK")
    python, flag, program = json.loads(check.partition("CMD ")[2])
    assert (python, flag) == ("python", "-c")
    port = free_port()

    def healthy(**more: str) -> bool:
        environment = os.environ | {"REPLAY_PORT": str(port)} | more
        return subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0

    with running_service(tmp_path, port=port):
        assert healthy()
    assert not healthy()
    files = certificate_in(tmp_path / "tls")
    with running_service(tmp_path, port=port, options=files.options, trusted=files.trusted):
        assert healthy(REPLAY_TLS_KEY=str(files.key))


def test_no_registry_is_named() -> None:
    for file in ("deploy/Dockerfile", "docker-compose.yml", "docker-compose.cluster.yml"):
        images = re.findall(r"(?:FROM|image:) +(\S+)", (ROOT / file).read_text())
        assert images
        # Of a name with a registry, the part before the first slash is a host.
        hosts = [image.partition("/")[0] for image in images if "/" in image]
        assert not any("." in each or ":" in each or each == "localhost" for each in hosts)
