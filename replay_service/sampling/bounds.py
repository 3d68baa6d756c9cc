"""Settings as fields of dataclasses: each field's metadata hold its description and its bounds, and nothing else does.

The keys of the metadata are those of `pydantic.Field`: `description`, `ge`, `gt`, `le`, `lt`, `allow_inf_nan`,
`min_length`, `max_length`. So a model of a request or of a file is made from the same fields
(`replay_service.setting_models`), and this package needs no other library.
"""

import math
import operator
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields
from functools import lru_cache
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

_LIMITS: Final[dict[str, tuple[Callable[[Any, Any], bool], str]]] = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "above"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "below"),
}
_LENGTHS: Final[dict[str, tuple[Callable[[Any, Any], bool], str]]] = {
    "min_length": (operator.ge, "at least"),
    "max_length": (operator.le, "at most"),
}


def check_bounds(settings: Any, section: str = "") -> None:
    """Check every field of a dataclass against the bounds in its metadata, and a `Literal` against its choices.

    Args:
        settings: an instance of the dataclass. Fields that are None have no value to check.
        section: comes before the names of fields in messages, such as `budget.`.

    Raises:
        ValueError: names the first field that is out of bounds, and the bound.
    """
    choices = _choices_of_fields(settings.__class__)
    for each in fields(settings):
        value = getattr(settings, each.name)
        for wanted in () if value is None else _missed(value, choices[each.name], each.metadata):
            raise ValueError(f"{section}{each.name} must be {wanted}, not {value}")


@lru_cache
def field_types(source: Hashable) -> dict[str, Any]:
    """The types of a dataclass's fields by name, with what `Annotated` adds to them."""
    return get_type_hints(source, include_extras=True)


@lru_cache
def _choices_of_fields(source: Hashable) -> dict[str, tuple[Any, ...]]:
    return {name: choices_of(type_) for name, type_ in field_types(source).items()}


def description_of(source: type, name: str) -> str:
    """The description of a field of a dataclass."""
    return next(str(each.metadata["description"]) for each in fields(source) if each.name == name)


def choices_of(type_: Any) -> tuple[Any, ...]:
    """The choices of a `Literal`, or of a union of them; none for any other type."""
    if get_origin(type_) is Literal:
        return get_args(type_)
    parts = [choices_of(each) for each in get_args(type_)]
    return sum(parts, ()) if all(parts) else ()


def _missed(value: Any, choices: tuple[Any, ...], metadata: Any) -> Iterator[str]:
    """Each bound that a value misses, in words. A number that is NaN misses all bounds of numbers."""
    if choices and value not in choices:
        yield f"one of {', '.join(map(str, choices))}"
    if not metadata.get("allow_inf_nan", True) and not math.isfinite(value):
        yield "finite"
    for key, (holds, words) in _LIMITS.items():
        if key in metadata and not holds(value, metadata[key]):
            yield f"{words} {metadata[key]:.15g}"
    for key, (holds, words) in _LENGTHS.items():
        if key in metadata and not holds(len(value), metadata[key]):
            yield f"{words} {metadata[key]} long"
