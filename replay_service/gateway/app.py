"""The application: a thin composition of the routes and what they work on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

import replay_service
from replay_service.corpus.reading.reader import CorpusStore
from replay_service.gateway.ingests import Ingests
from replay_service.gateway.middleware.access import Authentication
from replay_service.gateway.middleware.audit import Audit
from replay_service.gateway.middleware.checksums import Checksums
from replay_service.gateway.middleware.direct import Direct
from replay_service.gateway.middleware.overload import InProgress, Overload
from replay_service.gateway.middleware.problems import BodyLimit, install_problem_handlers, responses
from replay_service.gateway.middleware.protection import HostCheck, SafeAnswers
from replay_service.gateway.planning import OwnersPlan
from replay_service.gateway.routes import batches, corpora, health, losses, runs, samples, statistics
from replay_service.gateway.routes.batches import BatchSource, answer_batches
from replay_service.gateway.routes.losses import answer_losses
from replay_service.gateway.service import ReplayService
from replay_service.ledger.database import open_database
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import OwnerLimits
from replay_service.ledger.owners import Owners
from replay_service.settings import ServiceSettings
from replay_service.tokens import TokensInForce


def create_app(settings: ServiceSettings) -> FastAPI:
    """The service's ASGI application; the journal is opened when it starts and closed when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.tokens = TokensInForce(settings.tokens_path) if settings.asks_for_tokens else None
        settings.root.mkdir(parents=True, exist_ok=True)
        if settings.corpora_url is None:
            settings.corpora.mkdir(exist_ok=True)
        store = CorpusStore(settings.corpora_place, settings.block_cache_bytes)
        journal = Journal(open_database(settings.journal_url, settings.durability))
        owners = Owners(journal, store.get, OwnerLimits(settings.snapshot_every, settings.seal_after_s))
        ingests = Ingests(settings.corpora.absolute(), settings.ingest_from, settings.drain_timeout_s)
        app.state.plan = OwnersPlan(owners, journal, settings.max_steps_ahead)
        app.state.batches = BatchSource(app.state.plan, store, settings.max_steps_per_request)
        app.state.service = ReplayService(settings, store, journal, owners, ingests, _now)
        try:
            yield
        finally:
            ingests.close()
            journal.close()
            store.close()

    app = FastAPI(
        title="Replay service",
        summary="Prioritised rehearsal batches for fine-tuning without forgetting.",
        version=replay_service.__version__,
        lifespan=lifespan,
    )
    app.state.is_stopping = False
    app.state.in_progress = InProgress(settings.max_concurrent_requests)
    install_problem_handlers(app)
    app.include_router(health.router, responses=responses(400, 408, 413))
    for module in (runs, batches, losses, statistics, samples, corpora):
        app.include_router(module.router, responses=responses(400, 401, 403, 408, 413, 421, 503))
    _add_middleware(app, settings)
    return app


def _add_middleware(app: FastAPI, settings: ServiceSettings) -> None:
    """What a request passes before it comes to a route, the last one first."""
    templates = [each.path for each in iter_route_contexts(app.routes) if each.path is not None]
    app.add_middleware(Direct, answers={"batches": answer_batches, "losses": answer_losses})
    app.add_middleware(Checksums)
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(Authentication)
    app.add_middleware(Audit, templates=templates)
    app.add_middleware(HostCheck, settings=settings)
    app.add_middleware(Overload, in_progress=app.state.in_progress)
    app.add_middleware(SafeAnswers)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
