"""Pydantic models made from the fields of dataclasses: the same defaults, bounds and descriptions, stated once."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import pydantic
from pydantic import BaseModel, create_model

from replay_service.sampling.bounds import choices_of, field_types

M = TypeVar("M", bound=BaseModel)


def fields_of(
    source: type,
    *,
    types: Mapping[Any, Any],
    leave_out: Collection[str] = (),
    names: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    optional: bool = False,
) -> Callable[[type[M]], type[M]]:
    """A decorator that adds the fields of a dataclass to a pydantic model.

    Args:
        source: the dataclass. The metadata of its fields are arguments of `pydantic.Field`.
        types: which type stands in the model for a type of the dataclass, also within tuples and unions. Where the
            default comes from a factory, the factory is exchanged likewise.
        leave_out: fields of the dataclass that the model does not get.
        names: names in the model, by those in the dataclass; by default they are the same.
        defaults: defaults in the model, by names in the dataclass; by default they are the same.
        optional: every field may be None, and is by default.
    """
    names, defaults = names or {}, defaults or {}
    taken = [each for each in fields(source) if each.name not in leave_out]

    def definition(each: Field[Any]) -> tuple[Any, Any]:
        type_ = _exchanged(field_types(source)[each.name], types)
        if optional:
            return type_ | None, pydantic.Field(None, **each.metadata)
        return type_, pydantic.Field(**_default(each, types, defaults), **each.metadata)

    def add(model: type[M]) -> type[M]:
        definitions: Any = {names.get(each.name, each.name): definition(each) for each in taken}
        return create_model(
            model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **definitions
        )

    return add


def _default(field: Field[Any], types: Mapping[Any, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    if field.name in defaults:
        return {"default": defaults[field.name]}
    if field.default_factory is not MISSING:
        return {"default_factory": types.get(field.default_factory, field.default_factory)}
    return {} if field.default is MISSING else {"default": field.default}


def _exchanged(type_: Any, types: Mapping[Any, Any]) -> Any:
    """A type in which those that are keys of `types` are exchanged, however deep they stand in it.

    A union of literals becomes one literal, whose choices an error names together.
    """
    if choices := choices_of(type_):
        return Literal[choices]
    if type_ in types:
        return types[type_]
    origin, parts = get_origin(type_), tuple(_exchanged(each, types) for each in get_args(type_))
    if origin in (Union, UnionType):
        return reduce(or_, parts)
    return origin[parts] if origin is tuple else type_
