"""Changes of a run's settings as they are typed: `injection_ratio=0.02 budget.nats=0.1`.

Names, types and bounds are those of `RunConfig`, so that whatever is wrong is said before anything is sent.
"""

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from replay_service.errors import ReplayError
from replay_service.sampling.bounds import field_types
from replay_service.sampling.run_config import FIXED, RunConfig


class UnusableChange(ReplayError):
    slug, title = "unusable-change", "That cannot be set"


def settings_by_name(source: Any = RunConfig, prefix: str = "") -> dict[str, Any]:
    """The types of all settings that can be changed, by name; parts of a section have a dot in their names."""
    found: dict[str, Any] = {}
    for each in fields(source):
        if prefix or each.name not in FIXED:
            type_ = field_types(source)[each.name]
            section = next((part for part in (type_, *get_args(type_)) if is_dataclass(part)), None)
            name = prefix + each.name
            found |= {name: type_} if section is None else settings_by_name(section, f"{name}.")
    return found


def parse_changes(typed: Sequence[str], present: RunConfig) -> dict[str, Any]:
    """The changes to send, by name; a section is sent whole.

    Args:
        typed: such as `injection_ratio=0.02`.
        present: the run's configuration now.

    Raises:
        UnusableChange: names what is unknown, fixed or out of range.
    """
    known = settings_by_name()
    values = asdict(present)
    changed = set[str]()
    for each in typed:
        name, equals, text = each.partition("=")
        if not equals:
            raise UnusableChange(f"{each!r} sets nothing; write NAME=VALUE, such as injection_ratio=0.02")
        if name not in known:
            raise UnusableChange(_unknown(name, list(known)))
        _put(values, name.split("."), _parse(name, text, known[name]))
        changed.add(name.partition(".")[0])
    changes = {name: values[name] for name in changed}
    try:
        present.changed(**changes)
    except ValueError as error:
        raise UnusableChange(str(error)) from error
    except TypeError as error:  # of a section that was not there, some parts were given
        section = max((each.partition("=")[0].rpartition(".")[0] for each in typed), key=len)
        parts = ", ".join(each for each in known if each.startswith(f"{section}."))
        raise UnusableChange(f"the run has no {section}; set all its parts at once: {parts}") from error
    return changes


def differences(before: RunConfig, after: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Name, value before and value after of each setting that differs."""
    old, new = (dict(_flat(asdict(each))) for each in (before, after))
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield name, _shown(old.get(name)), _shown(new.get(name))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *sections, name = path
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
    values[name] = value


def _parse(name: str, text: str, type_: Any) -> Any:
    adapter = TypeAdapter[Any](type_)
    try:
        return adapter.validate_json(text) if text.startswith(("[", "{")) else adapter.validate_strings(text)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise UnusableChange(f"{name} cannot be {text!r}: {problem[:1].lower()}{problem[1:]}") from error


def _unknown(name: str, known: list[str]) -> str:
    if name in FIXED:
        return f"{name} stays as it was when the run was created; create another run to have it otherwise"
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    parts = [each for each in known if each.startswith(f"{name}.")]
    if parts:
        return f"{name} is a section; set its parts: {', '.join(parts)}"
    if not near:
        return f"there is no setting {name!r}; there are {', '.join(known)}"
    return f"there is no setting {name!r}; the nearest {'is' if len(near) == 1 else 'are'} {', '.join(near)}"
