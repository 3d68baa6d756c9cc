"""The middlewares of every process that answers HTTP: the single process, the owner of the runs, and each gateway."""

from collections.abc import Iterable

from starlette.applications import Starlette

from replay_service.gateway.metrics.process import ProcessMetrics
from replay_service.gateway.middleware.access import OPEN_PATHS, Authentication, Refusal
from replay_service.gateway.middleware.audit import Audit
from replay_service.gateway.middleware.checksums import Checksums
from replay_service.gateway.middleware.counting import Counting
from replay_service.gateway.middleware.overload import Overload
from replay_service.gateway.middleware.problems import BodyLimit
from replay_service.gateway.middleware.protection import CrossSiteCheck, HostCheck, SafeAnswers
from replay_service.settings import ServiceSettings


def add_middleware(
    app: Starlette, settings: ServiceSettings, templates: Iterable[str], refusal: Refusal, metrics: ProcessMetrics
) -> None:
    """Put the middlewares before the routes of an application; a request passes the last one first.

    Args:
        templates: the paths of all routes of the service, such as /v1/runs/{run}.
        refusal: makes the answer to somebody without a good token.
    """
    templates = list(templates)
    app.add_middleware(Checksums)
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(CrossSiteCheck)
    app.add_middleware(Authentication, refusal=refusal)
    app.add_middleware(Audit, templates=templates)
    app.add_middleware(HostCheck, settings=settings)
    app.add_middleware(
        Overload,
        most=settings.max_concurrent_requests,
        most_watchers=settings.max_watchers,
        metrics=metrics,
    )
    app.add_middleware(SafeAnswers)
    if metrics.counts_requests:
        app.add_middleware(Counting, metrics=metrics, templates=[*templates, *sorted(OPEN_PATHS)])
