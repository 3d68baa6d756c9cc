"""The cluster of `ray up`, by Ray's own schema, and the commands that it names."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config

from tests.deploy.compose import ROOT, check_command

FILE = ROOT / "deploy/ray/cluster.yaml"


def content() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def test_the_file_is_as_ray_has_it() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(content(), schema)
    validate_config(fillout_defaults(content()))


def test_every_command_of_ray_exists() -> None:
    commands = [*content()["head_start_ray_commands"], *content()["worker_start_ray_commands"]]
    for each in commands:
        check_command(shlex.split(each.replace("$RAY_HEAD_IP", "10.0.0.1")))
    assert any("--autoscaling-config=~/ray_bootstrap_config.yaml" in each for each in commands)


def test_the_command_that_follows_exists_and_finds_its_file() -> None:
    (command,) = re.findall(r"ray exec \S+ '(.+)'", FILE.read_text())
    check_command(shlex.split(command))
    config = command.split()[-1]
    mounts = [each.split()[1].split(":") for each in content()["docker"]["run_options"] if "--volume" in each]
    assert any(config.startswith(f"{inside}/") for _, inside, *_ in mounts)
