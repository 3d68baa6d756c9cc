"""What an answer says that is not the one that was hoped for, as an error of ours."""

import json
from typing import Any, Final

from replay_trainer.errors import (
    AnswerTooLarge,
    NotAllowed,
    NotReady,
    RunGone,
    RunInUse,
    ServiceError,
    ServiceRefused,
    ServiceUnavailable,
    ServiceUnknown,
    TokenRefused,
)
from replay_trainer.http_response import HttpResponse

RETRIED_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
_PASSING_STATUSES: Final = frozenset({502, 503, 504})
AWAITING_REPORTS: Final = "awaiting-reports"
BODY_DAMAGED: Final = "body-damaged"
ANSWER_TOO_LARGE: Final = "answer-too-large"
STEP_OUT_OF_RANGE: Final = "step-out-of-range"
ATTEMPT_SUPERSEDED: Final = "attempt-superseded"
"""The client's own: the service serves a later attempt of the run than the one that the job began with."""
CORPUS_IN_THE_MAKING: Final = "corpus-in-the-making"
"""The client's own: the first generation of the corpus is not there yet."""

_KINDS: Final[dict[str, type[ServiceRefused]]] = {
    "unknown-run": RunGone,
    "run-closed": RunGone,
    ATTEMPT_SUPERSEDED: RunGone,
    "job-superseded": RunGone,
    "run-in-use": RunInUse,
    "unknown-corpus": ServiceUnknown,
}
_KINDS_OF_STATUS: Final[dict[int, type[ServiceRefused]]] = {401: TokenRefused, 403: NotAllowed}


class StatusError(Exception):
    """An answer whose status is not that of success."""

    def __init__(self, answer: HttpResponse) -> None:
        super().__init__(f"{answer.url} answered HTTP {answer.status}")
        self.answer = answer


def may_pass(answer: HttpResponse) -> bool:
    """Whether the same request may be answered otherwise later."""
    return answer.status in RETRIED_STATUSES or slug_of(answer) == BODY_DAMAGED


def is_passing(answer: HttpResponse) -> bool:
    """Whether the service cannot answer now at this address, and perhaps can at another one."""
    return answer.status in _PASSING_STATUSES and slug_of(answer) != AWAITING_REPORTS


def is_overload(answer: HttpResponse) -> bool:
    """Whether the service has too much to do at this address."""
    return slug_of(answer) == "overloaded"


def refusal(answer: HttpResponse) -> ServiceError:
    """The error that an answer stands for which is not one of success."""
    slug = slug_of(answer)
    if slug == AWAITING_REPORTS:
        return NotReady(_detail(answer))
    if may_pass(answer):
        return ServiceUnavailable(f"the service at {answer.url} kept failing: HTTP {answer.status}")
    if slug is None:
        slug, detail = "unknown-answer", f"{answer.url} answered with no problem document; is it a replay service?"
    else:
        detail = _detail(answer)
    if slug == ANSWER_TOO_LARGE:
        return AnswerTooLarge(slug, detail, answer.status, int(json_of(answer).get("max_steps", 0)))
    kind = _KINDS.get(slug) or _KINDS_OF_STATUS.get(answer.status, ServiceRefused)
    return kind(slug, detail, answer.status)


def slug_of(answer: HttpResponse) -> str | None:
    """The stable name of a problem; None if the answer is no problem document."""
    try:
        content = json_of(answer)
        return str(content["type"]).rpartition(":")[2] if "detail" in content else None
    except (ValueError, KeyError, TypeError):
        return None


def json_of(answer: HttpResponse) -> Any:
    """What an answer says in JSON.

    Raises:
        ValueError: when it is no JSON.
    """
    return json.loads(bytes(answer.content))


def _detail(answer: HttpResponse) -> str:
    """What a problem document says, and by way of which proxy it came."""
    return str(json_of(answer)["detail"]) + answer.by
