"""Keys of a job's file that are not known, and what was probably meant."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to say of a key that is not among the known ones."""
    near = difflib.get_close_matches(key, known := list(known), n=1)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known are {', '.join(known)}"


def keys_at(model: type[BaseModel], place: Iterable[str | int]) -> list[str]:
    """The keys of the section that stands at a place of a model, such as ("rehearsal",)."""
    for name in place:
        field = model.model_fields[str(name)]
        model = next(each for each in (field.annotation, *get_args(field.annotation)) if _is_model(each))
    return list(model.model_fields)


def unknown_keys(of: type, given: Mapping[str, Any], place: str) -> Iterator[str]:
    """What to say of the keys that a dataclass, or one in its fields, does not have; `place` is where they stand."""
    types = get_type_hints(of)
    for key, value in given.items():
        if key not in types:
            yield f"{place}.{key}: {unknown_key(key, types)}"
        elif isinstance(value, Mapping):
            for inner in (types[key], *get_args(types[key])):
                if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                    yield from unknown_keys(inner, value, f"{place}.{key}")


def _is_model(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, BaseModel)
