"""The compose files, as a person's commands would see them, and the command lines in them."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
import yaml

import replay_service.cli
import replay_trainer.cli

ROOT = Path(__file__).parents[2]
ALONE, NETWORK, CLUSTER = (ROOT / f"docker-compose{name}.yml" for name in ("", ".network", ".cluster"))
PROGRAMS = {"replay-service": replay_service.cli.app, "replay-trainer": replay_trainer.cli.app}
OURS = ("replay-service", "replay-service:ray")
"""Images that are built from the Dockerfile."""


class _Loader(yaml.SafeLoader):
    """Reads `!override`, by which a file replaces a value of another instead of adding to it, as the value."""


def _value(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value


_Loader.add_constructor("!override", _value)


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.load(path.read_text(), _Loader)
    return content


def services_of(path: Path) -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = content_of(path)["services"]
    return services


def command_lines(service: dict[str, Any]) -> list[list[str]]:
    """What a service of our images runs: the commands of a script, or the one that it is."""
    words = [*service.get("entrypoint", ["replay-service"]), *service.get("command", [])]
    if words[0] == "bash":
        return [shlex.split(line) for line in words[-1].splitlines() if line.strip()]
    return [[str(word) for word in words]]


def check_command(words: Sequence[str]) -> None:
    """Fails unless a program of ours, or of Ray, takes the words; what `ray job submit` runs is looked at too."""
    program, name, *arguments = words
    if program == "ray":
        _check_ray(name, arguments)
        return
    group: Any = typer.main.get_command(PROGRAMS[program])
    assert group.commands[name].make_context(name, arguments).params


def _check_ray(name: str, arguments: list[str]) -> None:
    from ray.scripts.scripts import cli

    command: Any = cli
    for each in [name, *arguments]:
        if not hasattr(command, "commands"):
            break
        command, arguments = command.commands[each], arguments if command is cli else arguments[1:]
    if "--" in arguments:
        at = arguments.index("--")
        check_command(arguments[at + 1 :])
    assert command.make_context(name, list(arguments)).params
