"""What trainers ask in every step, answered before the application's routes.

To find a route and to prepare what it depends on costs as much as the answer. What the routes would check is checked
here, in the same words; Authentication stands before both.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Final

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Receive, Scope, Send

from replay_service.errors import InvalidRequest, ReplayError
from replay_service.gateway.middleware.access import access_in, named_run
from replay_service.gateway.middleware.problems import of_exception

Answer = Callable[[str, Scope, Receive, Send], Awaitable[None]]
"""Answers a request about the run that is named, which its caller may train on.

Raises:
    ValidationError: when the body has not the right fields.
    ReplayError: what else cannot be done.
"""

_PATH: Final = re.compile("/v1/runs/([^/]+)/(batches|losses)")


class Direct:
    """Answers requests by `answers`, which are named as the last part of their paths, and passes all others on."""

    def __init__(self, app: ASGIApp, answers: Mapping[str, Answer]) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self.find(scope)
        if found is None:
            await self._app(scope, receive, send)
            return
        run, answer = found
        try:
            access = access_in(scope)
            assert access is not None, "Authentication stands before it"
            access.need("train")
            named_run(run, access)
            await answer(run, scope, receive, send)
        except (ValidationError, ReplayError, SQLAlchemyError) as error:
            await of_exception(error, scope)(scope, receive, send)

    def find(self, scope: Scope) -> tuple[str, Answer] | None:
        """The run in the path of a request that is answered here, and how; None for any other request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        found = _PATH.fullmatch(scope["path"])
        answer = None if found is None else self._answers.get(found[2])
        return None if found is None or answer is None else (found[1], answer)


def media_type(headers: Mapping[bytes, bytes]) -> str:
    """What the body of a request is, without parameters; empty when its headers do not say."""
    return _without_parameters(headers.get(b"content-type", b""))


@lru_cache(64)
def _without_parameters(media_type: bytes) -> str:
    return media_type.split(b";")[0].strip().lower().decode("latin-1")


async def whole_body(receive: Receive) -> bytes:
    """The body of a request; raises InvalidRequest when it does not come to its end."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("the body did not come to its end")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)
