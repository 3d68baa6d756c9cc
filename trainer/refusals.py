"""What an answer says that is not the one that was hoped for, as an error of ours."""

from typing import Final

import httpx2

from trainer.errors import (
    NotAllowed,
    NotReady,
    RunGone,
    ServiceError,
    ServiceRefused,
    ServiceUnavailable,
    ServiceUnknown,
    TokenRefused,
)

RETRIED_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
BODY_DAMAGED: Final = "body-damaged"
STEP_OUT_OF_RANGE: Final = "step-out-of-range"
ATTEMPT_SUPERSEDED: Final = "attempt-superseded"
"""The client's own: the service serves a later attempt of the run than the one that the job began with."""

_KINDS: Final[dict[str, type[ServiceRefused]]] = {
    "unknown-run": RunGone,
    "run-closed": RunGone,
    ATTEMPT_SUPERSEDED: RunGone,
    "unknown-corpus": ServiceUnknown,
}
_KINDS_OF_STATUS: Final[dict[int, type[ServiceRefused]]] = {401: TokenRefused, 403: NotAllowed}


def may_pass(response: httpx2.Response) -> bool:
    """Whether the same request may be answered otherwise later."""
    return response.status_code in RETRIED_STATUSES or slug_of(response) == BODY_DAMAGED


def refusal(response: httpx2.Response) -> ServiceError:
    """The error that an answer with a status from 400 on stands for."""
    slug = slug_of(response)
    if slug == "awaiting-reports":
        return NotReady(_detail(response))
    if may_pass(response):
        return ServiceUnavailable(f"the service at {response.url} kept failing: HTTP {response.status_code}")
    if slug is None:
        slug, detail = "unknown-answer", f"{response.url} answered with no problem document; is it a replay service?"
    else:
        detail = _detail(response)
    kind = _KINDS.get(slug) or _KINDS_OF_STATUS.get(response.status_code, ServiceRefused)
    return kind(slug, detail, response.status_code)


def slug_of(response: httpx2.Response) -> str | None:
    """The stable name of a problem; None if the answer is no problem document."""
    try:
        content = response.json()
        return str(content["type"]).rpartition(":")[2] if "detail" in content else None
    except (ValueError, KeyError, TypeError):
        return None


def _detail(response: httpx2.Response) -> str:
    return str(response.json()["detail"])
