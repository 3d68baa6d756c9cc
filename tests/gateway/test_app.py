from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import replay_service
from replay_service.gateway.app import create_app
from replay_service.gateway.middleware.problems import PROBLEM_JSON
from replay_service.settings import load_settings

Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture
def openapi(tmp_path: Path) -> dict[str, Any]:
    return create_app(load_settings(root=tmp_path / "new")).openapi()


def operations(openapi: dict[str, Any]) -> list[Operation]:
    return [(path, method, each) for path, item in openapi["paths"].items() for method, each in item.items()]


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for each in node.values():
            yield from references(each)
    elif isinstance(node, list):
        for each in node:
            yield from references(each)


def test_making_an_application_touches_nothing(tmp_path: Path) -> None:
    create_app(load_settings(root=tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


def test_starting_it_makes_the_root_and_the_journal(tmp_path: Path) -> None:
    with TestClient(create_app(load_settings(root=tmp_path / "new"))):
        assert (tmp_path / "new" / "corpora").is_dir()
        assert (tmp_path / "new" / "journal.sqlite").is_file()


def test_two_applications_have_nothing_in_common(tmp_path: Path) -> None:
    first, second = (create_app(load_settings(root=tmp_path / name)) for name in "ab")
    with TestClient(first), TestClient(second):
        assert first.state.service.journal is not second.state.service.journal


def test_the_schema_says_the_version_that_is_installed(openapi: dict[str, Any]) -> None:
    assert openapi["info"]["version"] == replay_service.__version__


def test_every_operation_is_named_described_and_has_an_answer(openapi: dict[str, Any]) -> None:
    found = operations(openapi)
    assert len({each["operationId"] for _, _, each in found}) == len(found) > 0
    for path, method, each in found:
        assert each["operationId"].replace("_", "").isalpha(), (path, method)
        assert len(each["description"]) > 10, (path, method)
        assert any(status.startswith("2") and answer["content"] for status, answer in each["responses"].items())


def test_every_error_is_documented_as_a_problem(openapi: dict[str, Any]) -> None:
    for path, method, each in operations(openapi):
        for status, answer in each["responses"].items():
            assert status.startswith("2") or list(answer["content"]) == [PROBLEM_JSON], (path, method, status)


def test_every_operation_that_takes_a_name_or_a_body_documents_what_can_go_wrong(openapi: dict[str, Any]) -> None:
    for path, method, each in operations(openapi):
        statuses = set(each["responses"])
        assert "404" in statuses or "{" not in path, (path, method)
        assert {"413", "422"} <= statuses or "requestBody" not in each, (path, method)


def test_every_reference_in_the_schema_leads_somewhere(openapi: dict[str, Any]) -> None:
    for reference in references(openapi):
        node: Any = openapi
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_every_field_that_a_caller_sends_is_described(openapi: dict[str, Any]) -> None:
    body = openapi["paths"]["/v1/runs/{run}/batches"]["post"]["requestBody"]
    for schema in (openapi["components"]["schemas"]["RunCreate"], body["content"]["application/json"]["schema"]):
        for field, each in schema["properties"].items():
            # Where it would repeat what the named schema says, it is left out.
            named = openapi["components"]["schemas"].get(each.get("$ref", "").rpartition("/")[2], {})
            assert "description" in each | named or field in ("run", "corpus"), field
