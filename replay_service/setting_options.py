"""Options of a command made from settings that are stated elsewhere: the same defaults, bounds and descriptions."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from replay_service.sampling.bounds import choices_of, field_types

F = TypeVar("F", bound=Callable[..., Any])


def with_options(options: Iterable[inspect.Parameter]) -> Callable[[F], F]:
    """A decorator that gives a command more options; the function takes them as keyword arguments of any name."""

    def add(command: F) -> F:
        signature = inspect.signature(command)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        command.__signature__ = signature.replace(parameters=_ordered([*own, *options]))  # type: ignore[attr-defined]
        return command

    return add


def options_of(
    source: type,
    *,
    leave_out: Collection[str] = (),
    names: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[inspect.Parameter]:
    """An option for each field of a dataclass, as `replay_service.sampling.bounds` describes its metadata.

    Args:
        source: the dataclass.
        leave_out: fields that get no option.
        names: the function's arguments by names of fields, and so the names of options; by default they are the same.
        defaults: defaults of options by names of fields; by default they are those of the fields.
    """
    names, defaults = names or {}, defaults or {}
    return [
        option(
            names.get(each.name, each.name),
            field_types(source)[each.name],
            defaults.get(each.name, inspect.Parameter.empty if each.default is MISSING else each.default),
            help=each.metadata["description"],
            min=each.metadata.get("ge"),
            max=each.metadata.get("le"),
        )
        for each in fields(source)
        if each.name not in leave_out
    ]


def settings_options(source: type[BaseModel], names: Iterable[str]) -> list[inspect.Parameter]:
    """An option for each of these fields of a pydantic model; one that is not given is None."""
    found = {name: source.model_fields[name] for name in names}
    return [
        option(
            name,
            _optional(each.annotation),
            None,
            *([f"--{name.replace('_', '-')}"] if each.annotation is bool else []),
            help=each.description,
            show_default=False if each.default in (None, False) else str(each.default),
            min=_bound(each, "ge"),
            max=_bound(each, "le"),
        )
        for name, each in found.items()
    ]


def _optional(type_: Any) -> Any:
    return type_ | None


def _bound(field: FieldInfo, key: str) -> Any:
    return next((getattr(each, key) for each in field.metadata if hasattr(each, key)), None)


def option(name: str, type_: Any, default: Any, *flags: str, **more: Any) -> inspect.Parameter:
    """An option as a parameter of a function; `flags` and `more` are arguments of `typer.Option`."""
    choices = choices_of(type_)
    annotation: Any = Annotated[Literal[choices] if choices else type_, typer.Option(*flags, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _ordered(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """All as keyword arguments, those that have no default first, as Python wants parameters to be."""
    by_keyword = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    return sorted(by_keyword, key=lambda each: each.default is not inspect.Parameter.empty)
