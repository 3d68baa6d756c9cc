"""The application: a thin composition of the routes and what they work on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

import replay_service
from replay_service.corpus.reading.reader import CorpusStore
from replay_service.errors import CorpusError
from replay_service.gateway.batches import BatchSource
from replay_service.gateway.ingests import Ingests
from replay_service.gateway.metrics.process import ProcessMetrics
from replay_service.gateway.metrics.scrape import Scraper
from replay_service.gateway.middleware.problems import install_problem_handlers, responses
from replay_service.gateway.middleware.stack import add_middleware
from replay_service.gateway.page import page_routers
from replay_service.gateway.page.login import refusal
from replay_service.gateway.planning import OwnersPlan, Planner
from replay_service.gateway.readiness import Readiness
from replay_service.gateway.routes import (
    batches,
    claims,
    corpora,
    curves,
    events,
    health,
    losses,
    runs,
    samples,
    statistics,
    trained,
)
from replay_service.gateway.routes import metrics as metrics_route
from replay_service.gateway.service import ReplayService
from replay_service.gateway.tracing import NO_NATIVE_TELEMETRY, trace_if_wanted
from replay_service.ledger.database import open_database
from replay_service.ledger.forgetting_curves import CurveReader
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import OwnerLimits
from replay_service.ledger.owners import Owners
from replay_service.ledger.readers import RunReaders
from replay_service.settings import ServiceSettings
from replay_service.tokens import TokensInForce

_log = structlog.get_logger()

ROUTERS: Final[tuple[APIRouter, ...]] = (
    batches.router,
    losses.router,
    trained.router,
    runs.router,
    claims.router,
    events.router,
    statistics.router,
    samples.router,
    curves.router,
    corpora.router,
    *page_routers.ROUTERS,
    metrics_route.router,
)
"""Those that ask for a token, the ones that are called most first."""


def create_app(
    settings: ServiceSettings, asks_for_tokens: bool | None = None, metrics: ProcessMetrics | None = None
) -> FastAPI:
    """The service's ASGI application; the journal is opened when it starts and closed when it stops.

    Args:
        asks_for_tokens: whether callers need a token; by default what the settings say when the application starts.
        metrics: where it counts; by default something new.
    """
    metrics = metrics or ProcessMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.tokens = tokens_in_force(settings, asks_for_tokens)
        settings.root.mkdir(parents=True, exist_ok=True)
        if settings.corpora_url is None:
            settings.corpora.mkdir(exist_ok=True)
        store = CorpusStore(settings.corpora_place, settings.block_cache_bytes)
        database = open_database(settings.journal_url, settings.durability, settings.database_timeout_s)
        journal = Journal(database, meter=metrics)
        owners = Owners(journal, store.get, OwnerLimits(settings.snapshot_every, settings.seal_after_s), metrics)
        ingests = Ingests(settings.corpora.absolute(), settings.ingest_from, settings.drain_timeout_s)
        app.state.batches = batch_source(settings, OwnersPlan(owners, journal, settings.max_steps_ahead), store)
        readers = RunReaders(journal, owners)
        curve_reader = CurveReader(journal)
        app.state.service = ReplayService(settings, store, journal, owners, readers, curve_reader, ingests, _now)
        app.state.readiness = Readiness(settings, journal, store)
        app.state.scraper = scraper = Scraper(app.state.service, metrics, app.state.owns_runs)
        _tell_of(settings, store)
        try:
            yield
        finally:
            scraper.close()
            app.state.readiness.close()
            ingests.close()
            journal.close()
            store.close()

    app = FastAPI(
        title="Replay service",
        summary="Prioritised rehearsal batches for fine-tuning without forgetting.",
        version=replay_service.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        telemetry=NO_NATIVE_TELEMETRY,
    )
    app.state.is_stopping = False
    app.state.owns_runs = lambda: True
    app.state.metrics = metrics
    install_problem_handlers(app)
    for router in ROUTERS:
        app.include_router(router, responses=responses(400, 401, 403, 408, 413, 415, 421, 422, 431, 503))
    app.include_router(health.router, responses=responses(400, 408, 413, 431))
    add_middleware(app, settings, templates(), refusal, metrics)
    trace_if_wanted(app, settings.trace_to)
    return app


def batch_source(settings: ServiceSettings, planner: Planner, store: CorpusStore) -> BatchSource:
    return BatchSource(planner, store, settings.max_steps_per_request, settings.max_response_bytes)


def tokens_in_force(settings: ServiceSettings, asks_for_tokens: bool | None = None) -> TokensInForce | None:
    """The tokens that callers must have; None where nobody is asked for one."""
    is_asked = settings.asks_for_tokens if asks_for_tokens is None else asks_for_tokens
    if not is_asked:
        return None
    # Where the service decided before, it has been running, and a process of it is started again.
    return TokensInForce(settings.tokens_path, may_be_away=asks_for_tokens is not None)


def templates() -> list[str]:
    """The paths of all routes that ask for a token."""
    return [route.path for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


def _tell_of(settings: ServiceSettings, store: CorpusStore) -> None:
    """Log what is served: a service that was started without its volume finds nothing."""
    root = str(settings.root.absolute())
    try:
        names = store.names()
    except CorpusError as error:
        _log.warning("the corpora cannot be read now", root=root, problem=error.detail)
        return
    if names:
        _log.info("serving", root=root, corpora=names)
    else:
        _log.info("there are no corpora: ingest one, or see that the volume with them is at the root", root=root)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
