"""The reference pages, `--help` and OpenAPI say the same of every setting, and nothing is left out."""

from typing import Any

import pytest
from typer.testing import CliRunner

from replay_service.cli import app as service_app
from replay_service.corpus.ingest.settings import NO_OPTIONS, IngestSettings, column_option
from replay_service.corpus.shards.documents import Columns
from replay_service.gateway.app import create_app
from replay_service.sampling.bounds import description_of
from replay_service.sampling.run_config import Feedback, RunConfig
from replay_service.settings import load_settings
from replay_trainer.config import TrainConfig
from replay_trainer.keys import all_keys
from tests.docs.cli_reference import commands
from tests.docs.reference import EXAMPLE, FOLDER, example_settings, pages, problems, undescribed


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    found: dict[str, Any] = create_app(load_settings()).openapi()["components"]["schemas"]
    return found


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def test_the_pages_are_up_to_date(made: dict[str, str]) -> None:
    stale = [name for name, text in made.items() if (FOLDER / name).read_text() != text]
    assert stale == [], "write them again: python -m tests.docs.reference"
    assert EXAMPLE.read_text() == example_settings(), "write it again: python -m tests.docs.reference"
    assert {each.name for each in FOLDER.iterdir()} == set(made)


def test_every_setting_key_and_option_has_a_description() -> None:
    assert undescribed() == []


def test_every_key_of_a_job_every_command_and_every_error_is_documented(made: dict[str, str]) -> None:
    assert all(f"| `{name.rpartition('.')[2]}` |" in made["job.md"] for name, _ in all_keys(TrainConfig))
    assert all(f"## `{name}`" in made["cli.md"] for name, _ in commands())
    assert all(f"| `{each.slug}` |" in made["errors.md"] for each in problems())


def test_every_route_is_documented(made: dict[str, str]) -> None:
    for path, methods in create_app(load_settings()).openapi()["paths"].items():
        for method in methods:
            assert f"### `{method.upper()} {path}`" in made["http.md"]


def test_no_two_errors_have_the_same_slug() -> None:
    slugs = [each.slug for each in problems()]
    assert len(slugs) == len(set(slugs))


@pytest.mark.parametrize("name", [each for each in RunConfig.__dataclass_fields__ if each != "feedback"])
def test_a_setting_of_a_run_is_described_alike_wherever_it_can_be_made(name: str, schemas: dict[str, Any]) -> None:
    said = description_of(RunConfig, name)
    assert schemas["RunSettings"]["properties"][name]["description"] == said
    assert schemas["RunChange"]["properties"].get(name, {}).get("description", said) == said
    key = dict(all_keys(TrainConfig)).get(f"rehearsal.{name}")
    assert key is None or key.description == said


def test_the_feedback_of_a_run_is_described_alike_in_a_job_and_in_a_request(schemas: dict[str, Any]) -> None:
    keys = dict(all_keys(TrainConfig))
    for name, key in (("mode", "feedback"), ("lag", "feedback_lag")):
        said = description_of(Feedback, name)
        assert keys[f"rehearsal.{key}"].description == said
        assert schemas["FeedbackSettings"]["properties"][name]["description"] == said


def test_a_setting_of_an_ingest_is_described_alike_in_the_command_and_in_a_request(schemas: dict[str, Any]) -> None:
    fields = schemas["IngestCreate"]["properties"]
    output = CliRunner().invoke(service_app, ["ingest", "--help"], env={"COLUMNS": "400", "NO_COLOR": "1"}).output
    of_columns = {column_option(name): description_of(Columns, name) for name in Columns.__dataclass_fields__}
    names = set(IngestSettings.__dataclass_fields__) - NO_OPTIONS
    for name, said in (of_columns | {name: description_of(IngestSettings, name) for name in names}).items():
        assert fields[name]["description"] == said
        assert said in output
