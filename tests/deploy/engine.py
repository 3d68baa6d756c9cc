"""A container engine: images of the compose files, and projects that are brought up and taken down with all they have.

Images of others that cannot be pulled are replaced by the stand-ins of `stand_ins`.
"""

import json
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.deploy.compose import OURS, ROOT, services_of

STAND_INS: Final = Path(__file__).parent / "stand_ins"
_BUILD_PATIENCE_S: Final = 3000


def has_engine() -> bool:
    """Whether a container engine runs here, with compose."""
    try:
        return all(_run(["docker", *words]).returncode == 0 for words in (["info"], ["compose", "version"]))
    except FileNotFoundError:
        return False


def ensure_images(path: Path) -> list[str]:
    """Have each foreign image of a compose file here; returns those that are nowhere to be had.

    Pulls them, or else builds a stand-in.
    """
    missing = []
    for image in {each["image"] for each in services_of(path).values()} - set(OURS):
        name = image.partition(":")[0].rpartition("/")[2]
        stand_in = ["docker", "build", "--network", "host", "--target", name, "-t", image, str(STAND_INS)]
        commands: list[list[str]] = [["docker", "image", "inspect", image], ["docker", "pull", image], stand_in]
        if not any(_run(command).returncode == 0 for command in commands):
            missing.append(image)
    return missing


class Project:
    """A compose file under a name of its own."""

    def __init__(self, path: Path, folder: Path, profiles: Sequence[str] = ()) -> None:
        built = [name for name, each in services_of(path).items() if "build" in each]
        # A build reaches the indexes that this machine reaches; what runs has networks of its own.
        override = folder / "override.json"
        override.write_text(json.dumps({"services": {name: {"build": {"network": "host"}} for name in built}}))
        self._command = ["docker", "compose", "-f", str(path), "-f", str(override), "--project-directory", str(ROOT)]
        self._command += [word for each in profiles for word in ("--profile", each)]

    def run(self, *words: str) -> str:
        """The output of a compose command.

        Raises:
            AssertionError: when it fails; the message ends with what its services have logged.
        """
        done = _run([*self._command, *words])
        if done.returncode:
            logs = _run([*self._command, "logs", "--tail", "40"])
            raise AssertionError(f"compose {' '.join(words)}: {done.stderr[-3000:]}\n{logs.stdout[-6000:]}")
        return done.stdout

    def run_to_end(self, service: str) -> None:
        """Start a service after those that it waits for, and await its end; raises AssertionError when it fails."""
        # What runs stays as it is, though its image may have been built again for another service.
        self.run("up", "--detach", "--no-recreate", service)
        self.run("wait", service)

    def states(self) -> dict[str, dict[str, Any]]:
        """What the engine says of each container, by its name."""
        lines = self.run("ps", "--all", "--format", "json").splitlines()
        return {each["Name"]: each for each in map(json.loads, lines)}


@contextmanager
def project_up(
    path: Path, folder: Path, services: Sequence[str] = (), profiles: Sequence[str] = ()
) -> Iterator[Project]:
    """Build and start services, by default all, and wait until they are healthy; in the end nothing of them is left."""
    project = Project(path, folder, profiles)
    try:
        project.run("up", "--build", "--wait", "--detach", *services)
        yield project
    finally:
        everything = Project(path, folder, ["*"])
        everything.run("down", "--volumes", "--timeout", "60")


def answer_of(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.loads(answer.read())


def exec_in(container: str, *command: str) -> str:
    done = _run(["docker", "exec", container, *command])
    assert done.returncode == 0, done.stderr
    return done.stdout


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BUILD_PATIENCE_S, cwd=ROOT)
