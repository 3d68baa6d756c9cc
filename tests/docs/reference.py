"""Writes the reference pages of the documentation, and the example settings, from the code.

The command is `python -m tests.docs.reference`.
"""

import importlib
import inspect
import json
import pkgutil
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, ParameterInfo

import replay_service
import replay_trainer.errors
from replay_service.cli import app as service_app
from replay_service.errors import ReplayError
from replay_service.gateway.app import create_app
from replay_service.gateway.metrics.table import METRICS
from replay_service.sampling.bounds import choices_of
from replay_service.settings import ServiceSettings
from replay_trainer.cli import app as trainer_app
from replay_trainer.config import TrainConfig
from replay_trainer.keys import all_keys, section_of
from replay_trainer.study.settings import StudyConfig

FOLDER: Final = Path(__file__).parents[2] / "docs" / "reference"
EXAMPLE: Final = FOLDER.parents[1] / "deploy" / "replay.toml"
_NOTE: Final = "<!-- Written by `python -m tests.docs.reference`; change the code instead. -->"
_TYPES: Final = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
_BOUNDS: Final = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_EXAMPLE_HEAD: Final = """\
# Settings of `replay-service serve --config replay.toml`: every key with its default.
# An environment variable REPLAY_<KEY> overrides the file, and a flag overrides both. Unknown keys are refused.
# Written by `python -m tests.docs.reference` from replay_service/settings.py.
"""
_HEAD: Final = ("name", "type", "default", "meaning")
_METHODS: Final = ("get", "post", "patch", "delete")


def pages() -> dict[str, str]:
    """The text of every page, by the name of its file."""
    return {
        "settings.md": _settings_page(),
        "job.md": _job_page(),
        "study.md": _study_page(),
        "cli.md": _cli_page(),
        "http.md": _http_page(create_app(ServiceSettings.model_construct()).openapi()),
        "errors.md": _errors_page(),
        "metrics.md": _metrics_page(),
    }


def undescribed() -> list[str]:
    """The settings, keys, options and fields that have no description."""
    settings = [f"setting {name}" for name, each in ServiceSettings.model_fields.items() if not each.description]
    keys = [f"key {name}" for name, each in (*all_keys(TrainConfig), *all_keys(StudyConfig)) if not _description(each)]
    options = [
        f"option {parameter.name} of {command}"
        for command, function in commands()
        for parameter, _, info in _options(function)
        if not info.help
    ]
    return settings + keys + options


def problems() -> list[type[ReplayError]]:
    """Every error that a caller or a command can cause, by its slug."""
    for module in pkgutil.walk_packages(replay_service.__path__, "replay_service."):
        if "__main__" not in module.name and "migrations" not in module.name:
            importlib.import_module(module.name)
    return sorted(_below(ReplayError), key=lambda each: each.slug)


def _below(error: type[Any]) -> list[type[Any]]:
    return [found for each in error.__subclasses__() for found in (each, *_below(each))]


def _settings_page() -> str:
    rows = [
        (
            f"`{name}`",
            _type(field),
            _default(field),
            f"{field.description} Environment: `REPLAY_{name.upper()}`.",
        )
        for name, field in ServiceSettings.model_fields.items()
    ]
    return _page(
        "Settings of the service",
        "`replay-service serve --config FILE` reads these keys from a TOML file. An environment variable overrides the "
        "file, and an option of the command overrides both. Unknown keys are refused. "
        "The file `deploy/replay.toml` of the project holds every key with its default.",
        _table(_HEAD, rows),
    )


def example_settings() -> str:
    """The text of `deploy/replay.toml`: every key with its description, and its default or an example."""
    parts = []
    for name, field in ServiceSettings.model_fields.items():
        comment = textwrap.fill(field.description or "", 118, initial_indent="# ", subsequent_indent="# ")
        line = (
            f"{name} = {_toml(field.default)}" if field.default is not None else f"# {name} = {_toml(_example(field))}"
        )
        parts.append(f"{comment}\n{line}\n")
    return f"{_EXAMPLE_HEAD}\n" + "\n".join(parts)


def _example(field: FieldInfo) -> Any:
    assert field.examples, "a setting without a default needs an example"
    return field.examples[0]


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=str)


def _job_page() -> str:
    intro = "`replay-trainer train JOB.toml` reads these keys. Relative paths count from the file's folder. "
    parts = [
        f"## `[{place}]`\n\n{_first_paragraph(model)}\n\n{_keys(model)}" if place else f"## Top level\n\n{_keys(model)}"
        for place, model in _sections(TrainConfig)
    ]
    return _page("Keys of a job", f"{intro}Unknown keys are refused.", *parts)


def _study_page() -> str:
    intro = (
        "`replay-trainer study STUDY.toml` reads the [keys of a job](job.md) and these. An arm may have any key of a "
        "job but those that are alike in all arms; a target may have the keys of `[data]` that name its text. "
        "[The how-to](../how-to/study.md) has an example. Unknown keys are refused."
    )
    parts = [f"## `[study]`\n\n{_first_paragraph(StudyConfig)}\n\n{_keys(StudyConfig)}"]
    parts += [
        f"## `[[study.{name}]]`\n\n{_plain(section.__doc__)}\n\n{_keys(section)}"
        for name, field in StudyConfig.model_fields.items()
        if (section := section_of(field)) is not None
    ]
    return _page("Keys of a study", intro, *parts)


def _keys(model: type[BaseModel]) -> str:
    """A table of the keys of one section."""
    fields = model.model_fields.items()
    return _table(_HEAD, [(f"`{name}`", _type(field), _default(field), _description(field)) for name, field in fields])


def _sections(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield place, model
    for name, field in model.model_fields.items():
        if (section := section_of(field)) is not None:
            yield from _sections(section, f"{place}.{name}" if place else name)


def _cli_page() -> str:
    parts = [
        f"## `{command}`\n\n{_plain(function.__doc__)}\n\n{_table(_HEAD, map(_option_row, _options(function)))}"
        for command, function in commands()
    ]
    intro = "Every command explains itself with `--help`. Both programs say their version with `--version`."
    return _page("Command line", intro, *parts)


def _metrics_page() -> str:
    intro = (
        "`GET /metrics` gives these in the text format of Prometheus. [Metrics](../how-to/metrics.md) says how to "
        "scrape them. A metric of which nothing is known now is absent."
    )
    rows = [
        (f"`{each.full_name}`", each.kind, ", ".join(f"`{label}`" for label in each.labels), each.help)
        for each in METRICS
    ]
    return _page("Metrics", intro, _table(("name", "kind", "labels", "meaning"), rows))


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


def _options(function: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any, ParameterInfo]]:
    """The parameters of a command, each with its type and what it says of itself."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [(each, *get_args(each.annotation)) for each in parameters if each.annotation is not typer.Context]


def _option_row(option: tuple[inspect.Parameter, Any, ParameterInfo]) -> tuple[str, ...]:
    parameter, type_, info = option
    limits = [
        f"{words} {_number(value)}"
        for words, value in (("at least", info.min), ("at most", info.max))
        if value is not None
    ]
    return (
        f"`{parameter.name.upper()}`" if isinstance(info, ArgumentInfo) else f"`{_flag(parameter, info)}`",
        " ".join([_words(type_), ", ".join(limits)]).strip(),
        _option_default(parameter.default, info),
        info.help or "",
    )


def _flag(parameter: inspect.Parameter, info: ParameterInfo) -> str:
    flags = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
    return flags[0] if flags else f"--{parameter.name.replace('_', '-')}"


def options_of_command(function: Callable[..., Any]) -> set[str]:
    """The options of a command, such as `--seq-len`."""
    found = _options(function)
    return {_flag(parameter, info) for parameter, _, info in found if not isinstance(info, ArgumentInfo)}


def _option_default(default: Any, info: ParameterInfo) -> str:
    if isinstance(info.show_default, str):
        return f"`{info.show_default}`"
    if default is inspect.Parameter.empty:
        return "required"
    return "" if default is None or default is False else _value(default)


def _http_page(openapi: dict[str, Any]) -> str:
    schemas = openapi["components"]["schemas"]
    parts = []
    for path, methods in openapi["paths"].items():
        parts += [_operation(method, path, methods[method]) for method in _METHODS if method in methods]
    named = {**schemas, **{each["title"]: each for each in _schemas_of_bodies(openapi)}}
    objects = [_object(name, schema) for name, schema in sorted(named.items()) if "properties" in schema]
    return _page(
        "HTTP API",
        "The service describes itself: `/docs` shows every route, and `/openapi.json` is the same for programs. Errors "
        "are problem documents (RFC 9457); [Errors](errors.md) lists them. `scope` is the least scope of the caller's "
        "token. A service without tokens asks nobody for one.",
        "## Routes",
        *parts,
        "## Objects",
        *objects,
    )


def _schemas_of_bodies(openapi: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas that stand in a route instead of among the components."""
    routes = [route for methods in openapi["paths"].values() for route in methods.values()]
    bodies = [content for route in routes for content in route.get("requestBody", {}).get("content", {}).values()]
    return [found for each in bodies for found in _objects_in(each.get("schema", {}))]


def _objects_in(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "properties" in schema:
        yield schema
    inner = [schema["items"]] if "items" in schema else schema.get("properties", {}).values()
    for part in inner:
        yield from _objects_in(part)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    scopes = [scope for each in operation.get("security", ()) for scope in each.get("token", ())]
    body = operation.get("requestBody", {}).get("content", {})
    answers = {status: answer.get("content", {}) for status, answer in operation["responses"].items()}
    lines = [
        f"### `{method.upper()} {path}`",
        _plain(operation.get("description") or operation["summary"]),
        f"- Scope: {', '.join(f'`{each}`' for each in scopes) or 'none; anybody may ask'}",
    ]
    parameters = [each for each in operation.get("parameters", ()) if each["in"] == "query"]
    lines += [
        f"- Query `{each['name']}`: {_cell(each.get('description') or each['schema'].get('description', ''))}"
        for each in parameters
    ]
    lines += [f"- Body: {_content(body)}"] if body else []
    lines += [f"- {status}: {_content(content)}" for status, content in answers.items() if status[0] == "2"]
    lines += (
        [f"- Problems: {', '.join(sorted(status for status in answers if status[0] != '2'))}"]
        if len(answers) > 1
        else []
    )
    return f"{lines[0]}\n\n{lines[1]}\n\n" + "\n".join(lines[2:])


def _content(content: dict[str, Any]) -> str:
    return ", ".join(f"{_schema(each.get('schema', {}))} as `{kind}`" for kind, each in content.items())


def _object(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (f"`{key}`", _schema(field), _json_default(key, field, required), field.get("description", ""))
        for key, field in schema["properties"].items()
    ]
    return f"### {name}\n\n{_plain(schema.get('description', ''))}\n\n{_table(_HEAD, rows)}"


def _schema(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema or "properties" in schema:
        name = schema["$ref"].rpartition("/")[2] if "$ref" in schema else schema["title"]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_schema(each) for each in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_schema(schema.get('items', {}))}"
    if schema.get("format") == "binary":
        return "bytes"
    words = {"string": "text", "boolean": "true or false", "null": "null", "object": "object"}
    bounds = (("minimum", "ge"), ("exclusiveMinimum", "gt"), ("maximum", "le"), ("exclusiveMaximum", "lt"))
    limits = [f"{_BOUNDS[key]} {_number(schema[name])}" for name, key in bounds if name in schema]
    kind = schema.get("type", "bytes")
    return " ".join([words.get(kind, kind), ", ".join(limits)]).strip()


def _json_default(key: str, field: dict[str, Any], required: Iterable[str]) -> str:
    if "default" in field:
        return _value(field["default"])
    return "required" if key in required else ""


def _errors_page() -> str:
    rows = [(f"`{each.slug}`", str(each.status), each.title) for each in problems()]
    tree = (replay_trainer.errors.__doc__ or "").partition("\n\n")[2]
    return _page(
        "Errors",
        "An error of the service is a problem document: `type` is `urn:replay-service:problem:` and the slug, `detail` "
        "says what was wrong and what to do. A command prints the same and ends with exit code 2. "
        "[Troubleshooting](../troubleshooting.md) has a remedy for the common ones.",
        _table(("slug", "status", "title"), rows),
        "## Errors of the trainer\n\nThe package `replay_trainer` raises subclasses of "
        f"`replay_trainer.errors.TrainerError`:\n\n```text\n{tree.strip()}\n```",
    )


def _page(title: str, intro: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", intro, *parts, _NOTE]) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _number(value: float) -> str:
    """A bound, short: large powers of two as such."""
    exponent = int(value).bit_length() - 1
    if isinstance(value, float) or exponent < 20:
        return f"{value:g}"
    return f"2^{exponent}" if value == 1 << exponent else f"2^{exponent + 1} - 1"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _plain(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _first_paragraph(model: type[BaseModel]) -> str:
    return _plain((model.__doc__ or "").partition("\n\n")[0])


def _description(field: FieldInfo) -> str:
    section = section_of(field)
    return field.description or (_first_paragraph(section) if section else "")


def _type(field: FieldInfo) -> str:
    if (section := section_of(field)) is not None:
        return f"section of {len(section.model_fields)} keys"
    limits = [
        f"{words} {_number(getattr(each, key))}"
        for each in field.metadata
        for key, words in _BOUNDS.items()
        if getattr(each, key, None) is not None
    ]
    return " ".join([_words(field.annotation), ", ".join(limits)]).strip()


def _words(type_: Any) -> str:
    """A type in words; None, which stands for a key that is left out, is not named."""
    if choices := choices_of(type_):
        return ", ".join(f"`{each}`" for each in choices)
    origin, parts = get_origin(type_), [each for each in get_args(type_) if each is not type(None)]
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, parts)))
    if origin is tuple:
        return (
            f"list of {_words(parts[0])}" if Ellipsis in parts else f"pair of {_words(parts[0])} and {_words(parts[1])}"
        )
    if origin is not None and origin is not Literal:
        return _words(parts[0])
    return _TYPES.get(type_, "text")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "" if field.default_factory is not None else _value(field.default)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`{list(value)}`"
    return f"`{value}`" if value != "" else "empty"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
    EXAMPLE.write_text(example_settings())


if __name__ == "__main__":
    main()
