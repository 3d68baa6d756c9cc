"""The application: a thin composition of the routes and what they work on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

import replay_service
from replay_service.corpus.reader import CorpusStore
from replay_service.gateway import batches, corpora, health, losses, runs, samples, statistics
from replay_service.gateway.ingests import Ingests
from replay_service.gateway.problems import TooLargeAsProblem, install_problem_handlers
from replay_service.gateway.service import ReplayService
from replay_service.ledger.database import open_database
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import OwnerLimits
from replay_service.ledger.owners import Owners
from replay_service.settings import ServiceSettings


def create_app(settings: ServiceSettings) -> FastAPI:
    """The service's ASGI application; the journal is opened when it starts and closed when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings.root.mkdir(parents=True, exist_ok=True)
        if settings.corpora_url is None:
            settings.corpora.mkdir(exist_ok=True)
        store = CorpusStore(settings.corpora_place, settings.block_cache_bytes)
        journal = Journal(open_database(settings.journal_url, settings.durability))
        owners = Owners(journal, store.get, OwnerLimits(settings.snapshot_every, settings.seal_after_s))
        ingests = Ingests(settings.corpora.absolute(), settings.ingest_from, settings.drain_timeout_s)
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
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(TooLargeAsProblem, max_body_bytes=settings.max_body_bytes)
    install_problem_handlers(app)
    for module in (runs, batches, losses, statistics, samples, corpora, health):
        app.include_router(module.router)
    return app


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
