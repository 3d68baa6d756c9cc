"""Requests made up from the OpenAPI document: every answer is one that it describes, and none is a failure.

All checks of schemathesis are in force. Among them: no 5xx but the documented ones, no status, content type or body
that the document does not describe, nothing invalid accepted, no method answered that is not listed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import ignored_auth
from schemathesis.specs.openapi.schemas import OpenApiSchema

from replay_service.gateway.app import create_app
from replay_service.settings import load_settings
from replay_service.wire.protocol import ARROW_STREAM
from tests.gateway.worlds import RUN, batch_of, bearer, losses_of, make_token, report
from tests.support import make_corpus

BASE_URL = "http://127.0.0.1"
REAL_NAMES = {"run": ("tune", "fenced", "closed"), "corpus": ("wiki",), "sample_id": (4294967314, 4294967320)}
MODES = list(schemathesis.GenerationMode)
CONFIG: dict[str, Any] = {
    "checks": {
        # A document cannot say which values go together: 422 may be the answer to a request that fits it.
        "positive_data_acceptance": {"expected-statuses": ["2xx", 403, 404, 406, 409, 415, 422, 503]},
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503]},
    }
}
OPERATIONS = [
    f"{method.upper()} {path}"
    for path, methods in create_app(load_settings()).openapi()["paths"].items()
    for method in methods
]


@schemathesis.serializer(ARROW_STREAM)
def as_it_is(_context: schemathesis.SerializationContext, body: Any) -> bytes:
    return body if isinstance(body, bytes) else str(body).encode()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[OpenApiSchema]:
    """A service that has a corpus, and runs in several states."""
    make_corpus(tmp_path / "corpora")
    token = make_token(tmp_path, "admin")
    app = create_app(load_settings(root=tmp_path))
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client:
        client.headers.update(bearer(token))
        for name, more in (("tune", {}), ("fenced", {"feedback": {"mode": "fenced"}}), ("closed", {})):
            assert client.post("/v1/runs", json=RUN | {"run": name} | more).status_code == 201
        assert report(client, losses_of(batch_of(client, 0, 5))).status_code == 200
        assert client.post("/v1/runs/closed/close", json={}).status_code == 200
        config = CONFIG | {"auth": {"openapi": {"token": {"bearer": token}}}}
        schema = schemathesis.openapi.from_dict(app.openapi(), config=schemathesis.Config.from_dict(config))
        schema.app = app
        schema.token = bearer(token)
        schema.hook(flatmap_path_parameters)
        yield schema


def operation_of(api: OpenApiSchema, label: str) -> schemathesis.APIOperation:
    operation = api.find_operation_by_label(label)
    assert operation is not None
    return operation


def flatmap_path_parameters(
    _context: schemathesis.HookContext, drawn: dict[str, Any] | None
) -> st.SearchStrategy[dict[str, Any] | None]:
    """Puts names that there are into half of the paths."""
    real = {name: st.sampled_from(REAL_NAMES[name]) for name in drawn or {} if name in REAL_NAMES}
    return st.just(drawn) | st.fixed_dictionaries(real).map(lambda names: drawn and drawn | names)


@pytest.mark.parametrize("label", OPERATIONS)
def test_requests_at_the_limits_get_answers_that_are_documented(api: OpenApiSchema, label: str) -> None:
    """Every limit of every field, every field left out, every method that is not listed."""
    operation = operation_of(api, label)
    config = api.config.generation_for(operation=operation, phase="coverage")
    for case in api.iter_coverage_cases(operation, generation_modes=MODES, generation_config=config):
        headers = None if case.meta.is_negative_at(ParameterLocation.HEADER) else api.token
        case.call_and_validate(base_url=BASE_URL, headers=headers, excluded_checks=[ignored_auth])


@pytest.mark.parametrize("label", OPERATIONS)
def test_made_up_requests_get_answers_that_are_documented(api: OpenApiSchema, label: str) -> None:
    check_made_up(api, label, 10)


@pytest.mark.slow
@pytest.mark.parametrize("label", OPERATIONS)
def test_thousands_of_made_up_requests_get_answers_that_are_documented(api: OpenApiSchema, label: str) -> None:
    check_made_up(api, label, 300)


def check_made_up(api: OpenApiSchema, label: str, examples: int) -> None:
    """So many requests that fit the document, and as many that do not: the same ones in every run."""
    operation = operation_of(api, label)
    takes_anything = operation.body or operation.path_parameters or operation.query
    for mode in MODES if takes_anything else MODES[:1]:

        @settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(base_url=BASE_URL)

        check()
