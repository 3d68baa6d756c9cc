"""`replay-service config`: the settings in force."""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from replay_service.cli.operators.options import print_json, say
from replay_service.cli.operators.pictures import table_of
from replay_service.cli.serve import FLAGS
from replay_service.cli.shared import ConfigOption, errors_as_messages, read_settings
from replay_service.setting_options import settings_options, with_options
from replay_service.settings import ENV_PREFIX, ServiceSettings

app = typer.Typer(help="Look at the settings of the service.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at the settings of the service."""


@app.command()
@with_options(settings_options(ServiceSettings, FLAGS))
def show(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **flags: Any,
) -> None:
    """Show every setting in force, and where each comes from. Passwords and queries of URLs are masked."""
    with errors_as_messages():
        settings = read_settings(config, **flags)
    sources = sources_of(config, flags, os.environ)
    values = {name: _shown(settings, name) for name in ServiceSettings.model_fields}
    if as_json:
        print_json({name: {"value": values[name], "source": sources[name]} for name in values})
        return
    rows = [(name, _text(values[name]), sources[name]) for name in values]
    say(table_of(("setting", "value", "source"), rows))


def sources_of(config: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Where each setting comes from: a flag, before the environment, before the file, before the default."""
    in_file = {} if config is None else tomllib.loads(config.read_text())
    variables = {name.upper(): name for name in environment}
    found = dict.fromkeys(ServiceSettings.model_fields, "default")
    for name in found:
        variable = f"{ENV_PREFIX}{name}".upper()
        if flags.get(name) is not None:
            found[name] = f"--{name.replace('_', '-')}"
        elif variable in variables:
            found[name] = variables[variable]
        elif name in in_file:
            found[name] = str(config)
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _shown(settings: ServiceSettings, name: str) -> Any:
    """The value of a setting as JSON; the user and the query of a URL that may hold secrets are masked."""
    value = settings.model_dump(mode="json", include={name})[name]
    if ServiceSettings.model_fields[name].repr:
        return value
    return [_masked(each) for each in value] if isinstance(value, list) else value and _masked(value)


def _masked(url: str) -> str:
    return re.sub(r"\?.*", "?***", re.sub(r"//.*@", "//***@", url))
