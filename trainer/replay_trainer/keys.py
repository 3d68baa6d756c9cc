"""Sections of a job's file: their keys, and errors that name an unknown key and the key that was probably meant."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

_LIKENESS: Final = 0.75
"""Least likeness, of 1, of a known key that is suggested in place of an unknown one."""


class Section(BaseModel):
    """A section of a file: unknown keys are refused, and errors show no values, which may be secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def problems_of(error: ValidationError, model: type[BaseModel]) -> str:
    """The problems that pydantic found with the keys and values of a section, in one line."""
    return "; ".join(_problem(each, model) for each in error.errors())


def _problem(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    place = [str(each) for each in error["loc"]]
    said = error["msg"]
    if error["type"] == "extra_forbidden":
        said = unknown_key(place[-1], keys_at(model, error["loc"][:-1]))
    return f"{'.'.join(place) or 'the whole'}: {said}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """A sentence on a key that is not among the known ones."""
    near = difflib.get_close_matches(key, known := list(known), n=1, cutoff=_LIKENESS)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known are {', '.join(known)}"


def keys_at(model: type[BaseModel], place: Iterable[str | int]) -> list[str]:
    """The keys of the section that stands at a place of a model, such as ("rehearsal",)."""
    for name in place:
        if isinstance(name, int):  # a place in a list of sections
            continue
        model = section_of(model.model_fields[name]) or model
    return list(model.model_fields)


def all_keys(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a model with its sections, by its dotted name, such as `rehearsal.budget.nats`."""
    for name, field in model.model_fields.items():
        yield f"{before}{name}", field
        if (section := section_of(field)) is not None:
            yield from all_keys(section, f"{before}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a key holds, if it holds one."""
    return next((each for each in (field.annotation, *get_args(field.annotation)) if _is_model(each)), None)


def _is_model(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, BaseModel)
