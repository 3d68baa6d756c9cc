"""The reference page of the command line: every command with its options."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_args

import typer
from typer.models import ArgumentInfo, ParameterInfo

from replay_service.cli import app as service_app
from replay_trainer.cli import app as trainer_app
from tests.docs.markdown_text import HEAD, number_in_words, page, plain, table, type_in_words, value_in_words


def cli_page() -> str:
    parts = [
        f"## `{command}`\n\n{plain(function.__doc__)}\n\n{table(HEAD, map(_option_row, options_of(function)))}"
        for command, function in commands()
    ]
    intro = "Every command explains itself with `--help`. Both programs say their version with `--version`."
    return page("Command line", intro, *parts)


def commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every command with its function."""
    for program, app in (("replay-service", service_app), ("replay-trainer", trainer_app)):
        yield from _commands_of(program, app)


def _commands_of(program: str, app: typer.Typer) -> Iterator[tuple[str, Callable[..., Any]]]:
    for each in app.registered_commands:
        assert each.callback is not None
        yield f"{program} {each.name or each.callback.__name__}", each.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        callback = group.typer_instance.registered_callback
        if callback is not None and callback.callback is not None and group.typer_instance.info.invoke_without_command:
            yield f"{program} {group.name}", callback.callback
        yield from _commands_of(f"{program} {group.name}", group.typer_instance)


def options_of(function: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any, ParameterInfo]]:
    """The parameters of a command, each with its type and what it says of itself."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [(each, *get_args(each.annotation)) for each in parameters if each.annotation is not typer.Context]


def _option_row(option: tuple[inspect.Parameter, Any, ParameterInfo]) -> tuple[str, ...]:
    parameter, type_, info = option
    limits = [
        f"{words} {number_in_words(value)}"
        for words, value in (("at least", info.min), ("at most", info.max))
        if value is not None
    ]
    return (
        f"`{parameter.name.upper()}`" if isinstance(info, ArgumentInfo) else f"`{_flag(parameter, info)}`",
        " ".join([type_in_words(type_), ", ".join(limits)]).strip(),
        _option_default(parameter.default, info),
        info.help or "",
    )


def _flag(parameter: inspect.Parameter, info: ParameterInfo) -> str:
    flags = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
    return flags[0] if flags else f"--{parameter.name.replace('_', '-')}"


def options_of_command(function: Callable[..., Any]) -> set[str]:
    """The options of a command, such as `--seq-len`."""
    found = options_of(function)
    return {_flag(parameter, info) for parameter, _, info in found if not isinstance(info, ArgumentInfo)}


def _option_default(default: Any, info: ParameterInfo) -> str:
    if isinstance(info.show_default, str):
        return f"`{info.show_default}`"
    if default is inspect.Parameter.empty:
        return "required"
    return "" if default is None or default is False else value_in_words(default)
