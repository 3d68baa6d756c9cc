"""Forms: what a browser sends of one."""

from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request

from replay_service.errors import InvalidRequest
from replay_service.gateway.middleware.access import header_in
from replay_service.gateway.middleware.protection import says_nothing_of_its_origin
from replay_service.gateway.routes.raw import media_type

FORM: Final = "application/x-www-form-urlencoded"
MOST_FIELDS: Final = 20


async def fields_of(request: Request) -> dict[str, str]:
    """The fields of a form by name; of a name that is there twice, the last one.

    Raises:
        InvalidRequest: when the body is no form.
        CrossSite: when it does not say which page it comes from; whether that is one of ours was looked at before.
    """
    if not any(header_in(request.scope, name) for name in (b"origin", b"sec-fetch-site")):
        raise says_nothing_of_its_origin()
    if media_type(request) != FORM:
        raise InvalidRequest(f"this takes a form, {FORM}")
    try:
        body = (await request.body()).decode()
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except ValueError as error:
        raise InvalidRequest(f"the body is no form: {error}") from error
