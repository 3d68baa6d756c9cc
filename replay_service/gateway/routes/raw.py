"""Routes that take requests as they came: those that trainers call in every step.

To solve the dependencies of a FastAPI route and to validate its body costs more than a batch. So these routes read the
request and check access by themselves, with the same functions as all others, and FastAPI describes them.
"""

from functools import lru_cache
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from replay_service import tokens
from replay_service.gateway.logs import bind_work
from replay_service.gateway.middleware.access import access_in, named_run
from replay_service.gateway.routes.strict import Handler, strict
from replay_service.names import NAME_RULE

T = TypeVar("T", bound=BaseModel)


class RawRoute(APIRoute):
    """A route whose function gets the Request and gives the Response, and nothing stands between."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert not self.dependencies, "nobody would solve them"

    def get_route_handler(self) -> Handler:
        return strict(self.endpoint, [])


def described(scope: tokens.Scope, bodies: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI of a raw route on a run: the scope that it asks for, and the schema of its body by media type."""
    return {
        "security": [{"token": [scope]}],
        "parameters": [
            {
                "name": "run",
                "in": "path",
                "required": True,
                "description": NAME_RULE,
                "schema": {"type": "string", "description": NAME_RULE, "title": "Run"},
            }
        ],
        "requestBody": {"required": True, "content": {name: {"schema": schema} for name, schema in bodies.items()}},
    }


def run_of(request: Request, scope: tokens.Scope) -> str:
    """The run in the path; raises what is raised when the caller may not do what the scope is for, or not with it."""
    access = access_in(request.scope)
    assert access is not None, "Authentication stands before every route but those of OPEN_PATHS"
    access.need(scope)
    run: str = request.path_params["run"]
    named_run(run, access)
    bind_work(request.scope, run=run)
    return run


def parsed(kind: type[T], body: bytes) -> T:
    """A body of JSON as a model; raises RequestValidationError, which tells the caller what is wrong with it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from None


def media_type(request: Request) -> str:
    """The type of the body without parameters; empty where the request does not say it."""
    return _without_parameters(request.headers.get("content-type", ""))


@lru_cache(64)
def _without_parameters(content_type: str) -> str:
    return content_type.split(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))
