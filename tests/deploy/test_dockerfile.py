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
import yaml

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
    assert {"pyproject.toml", project()["readme"], *project()["license-files"]} <= set(copied())


def test_the_image_is_of_a_python_that_the_project_supports() -> None:
    (image,) = arguments_of("FROM")
    name, _, version = image.partition(":")
    assert name == "python"
    least = project()["requires-python"].removeprefix(">=")
    assert [int(part) for part in version.removesuffix("-slim").split(".")] >= [int(part) for part in least.split(".")]


def test_the_project_is_installed_with_its_constraints_and_the_extra_that_was_asked_for() -> None:
    (install,) = [rest for rest in arguments_of("RUN") if "pip install" in rest]
    assert shlex.split(install) == ["pip", "install", "-c", "deploy/constraints.txt", ".${EXTRA:+[${EXTRA}]}"]
    assert arguments_of("ARG") == ['EXTRA="server,text"']
    assert {"server", "text", "postgresql", "demo"} <= set(project()["optional-dependencies"])


def test_nothing_runs_as_root() -> None:
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert arguments_of("USER") == ["replay"]
    assert "RUN" not in names[names.index("USER") :]


def test_the_entrypoint_and_its_command_exist() -> None:
    (entrypoint,), (command,) = arguments_of("ENTRYPOINT"), arguments_of("CMD")
    assert json.loads(entrypoint)[0] in project()["scripts"]
    group: Any = typer.main.get_command(app)
    assert json.loads(command)[0] in group.commands


def test_the_port_that_is_exposed_is_the_one_served() -> None:
    assert arguments_of("EXPOSE") == [str(load_settings().port)]


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


def test_the_composition_asks_whether_it_is_healthy_as_the_image_does() -> None:
    (check,) = arguments_of("HEALTHCHECK")
    content = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert content["services"]["network"]["healthcheck"]["test"][1:] == json.loads(check.partition("CMD ")[2])


def test_no_registry_is_named() -> None:
    for file in ("deploy/Dockerfile", "docker-compose.yml"):
        images = re.findall(r"(?:FROM|image:) +(\S+)", (ROOT / file).read_text())
        assert images
        # Of a name with a registry, the part before the first slash is a host.
        hosts = [image.partition("/")[0] for image in images if "/" in image]
        assert not any("." in each or ":" in each or each == "localhost" for each in hosts)
