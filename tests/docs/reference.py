"""Writes the reference pages of the documentation, and the example settings, from the code.

The command is `python -m tests.docs.reference`.
"""

import importlib
import json
import pkgutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import replay_service
import replay_trainer.errors
from replay_service.errors import ReplayError
from replay_service.gateway.app import create_app
from replay_service.gateway.metrics.table import METRICS
from replay_service.settings import ServiceSettings
from replay_trainer.config import TrainConfig
from replay_trainer.keys import all_keys, section_of
from replay_trainer.recipe import OBJECTIVES, RECIPES
from replay_trainer.study.settings import StudyConfig
from tests.docs.cli_reference import cli_page, commands, options_of
from tests.docs.http_reference import http_page
from tests.docs.markdown_text import BOUNDS, HEAD, number_in_words, page, plain, table, type_in_words, value_in_words

FOLDER: Final = Path(__file__).parents[2] / "docs" / "reference"
EXAMPLE: Final = FOLDER.parents[1] / "deploy" / "replay.toml"
_EXAMPLE_HEAD: Final = """\
# Settings of `replay-service serve --config replay.toml`: every key with its default.
# An environment variable REPLAY_<KEY> overrides the file, and a flag overrides both. Unknown keys are refused.
# Written by `python -m tests.docs.reference` from replay_service/settings.py.
"""
_RECIPES: Final = """\
`recipe` and `objective` of `[rehearsal]` set these keys of it, where they are not written. [Choose a
method](../how-to/methods.md#the-recipe) explains them."""


def pages() -> dict[str, str]:
    """The text of every page, by the name of its file."""
    return {
        "settings.md": _settings_page(),
        "job.md": _job_page(),
        "study.md": _study_page(),
        "cli.md": cli_page(),
        "http.md": http_page(create_app(ServiceSettings.model_construct()).openapi()),
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
        for parameter, _, info in options_of(function)
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
    return page(
        "Settings of the service",
        "`replay-service serve --config FILE` reads these keys from a TOML file. An environment variable overrides the "
        "file, and an option of the command overrides both. Unknown keys are refused. "
        "The file `deploy/replay.toml` of the project holds every key with its default.",
        table(HEAD, rows),
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
    recipes = f"## Recipes\n\n{_RECIPES}\n\n{_recipes()}"
    return page("Keys of a job", f"{intro}Unknown keys are refused.", *parts, recipes)


def _recipes() -> str:
    columns = {f"`{name}`": keys for name, keys in RECIPES.items() if name != "recommended"}
    of_objective = {f"`recommended`, `{name}`": RECIPES["recommended"] | keys for name, keys in OBJECTIVES.items()}
    columns = of_objective | columns
    names = {name: None for keys in columns.values() for name in keys}
    rows = [(f"`{name}`", *(_stated(keys, name) for keys in columns.values())) for name in names]
    return table(("key", *columns), rows)


def _stated(keys: Mapping[str, Any], name: str) -> str:
    return f"`{keys[name]}`" if name in keys else "-"


def _study_page() -> str:
    intro = (
        "`replay-trainer study STUDY.toml` reads the [keys of a job](job.md) and these. An arm may have any key of a "
        "job but those that are alike in all arms; a target may have the keys of `[data]` that name its text. "
        "[The how-to](../how-to/study.md) has an example. Unknown keys are refused."
    )
    parts = [f"## `[study]`\n\n{_first_paragraph(StudyConfig)}\n\n{_keys(StudyConfig)}"]
    parts += [
        f"## `[[study.{name}]]`\n\n{plain(section.__doc__)}\n\n{_keys(section)}"
        for name, field in StudyConfig.model_fields.items()
        if (section := section_of(field)) is not None
    ]
    return page("Keys of a study", intro, *parts)


def _keys(model: type[BaseModel]) -> str:
    """A table of the keys of one section."""
    fields = model.model_fields.items()
    return table(HEAD, [(f"`{name}`", _type(field), _default(field), _description(field)) for name, field in fields])


def _sections(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield place, model
    for name, field in model.model_fields.items():
        if (section := section_of(field)) is not None:
            yield from _sections(section, f"{place}.{name}" if place else name)


def _metrics_page() -> str:
    intro = (
        "`GET /metrics` gives these in the text format of Prometheus. [Metrics](../how-to/metrics.md) says how to "
        "scrape them. A metric of which nothing is known now is absent."
    )
    rows = [
        (f"`{each.full_name}`", each.kind, ", ".join(f"`{label}`" for label in each.labels), each.help)
        for each in METRICS
    ]
    return page("Metrics", intro, table(("name", "kind", "labels", "meaning"), rows))


def _errors_page() -> str:
    rows = [(f"`{each.slug}`", str(each.status), each.title) for each in problems()]
    tree = (replay_trainer.errors.__doc__ or "").partition("\n\n")[2]
    return page(
        "Errors",
        "An error of the service is a problem document: `type` is `urn:replay-service:problem:` and the slug, `detail` "
        "says what was wrong and what to do. A command prints the same and ends with exit code 2. "
        "[Troubleshooting](../troubleshooting.md) has a remedy for the common ones.",
        table(("slug", "status", "title"), rows),
        "## Errors of the trainer\n\nThe package `replay_trainer` raises subclasses of "
        f"`replay_trainer.errors.TrainerError`:\n\n```text\n{tree.strip()}\n```",
    )


def _first_paragraph(model: type[BaseModel]) -> str:
    return plain((model.__doc__ or "").partition("\n\n")[0])


def _description(field: FieldInfo) -> str:
    section = section_of(field)
    return field.description or (_first_paragraph(section) if section else "")


def _type(field: FieldInfo) -> str:
    if (section := section_of(field)) is not None:
        return f"section of {len(section.model_fields)} keys"
    limits = [
        f"{words} {number_in_words(getattr(each, key))}"
        for each in field.metadata
        for key, words in BOUNDS.items()
        if getattr(each, key, None) is not None
    ]
    return " ".join([type_in_words(field.annotation), ", ".join(limits)]).strip()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "" if field.default_factory is not None else value_in_words(field.default)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
    EXAMPLE.write_text(example_settings())


if __name__ == "__main__":
    main()
