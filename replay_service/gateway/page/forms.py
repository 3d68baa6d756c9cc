"""Forms: what a browser sends of one."""

from urllib.parse import parse_qsl

from starlette.requests import Request

from replay_service.errors import InvalidRequest
from replay_service.gateway.middleware.protection import FORM
from replay_service.gateway.routes.raw import media_type

MOST_FIELDS = 20


async def fields_of(request: Request) -> dict[str, str]:
    """The fields of a form by name; of a name that is there twice, the last one.

    Raises:
        InvalidRequest: when the body is no form.
    """
    if media_type(request) != FORM:
        raise InvalidRequest(f"this takes a form, {FORM}")
    try:
        body = (await request.body()).decode()
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except ValueError as error:
        raise InvalidRequest(f"the body is no form: {error}") from error
