"""Series of corpora and of the ingests that write them."""

import structlog

from replay_service.corpus.reading.reader import CorpusStore
from replay_service.errors import CorpusError
from replay_service.gateway.ingests import Ingests
from replay_service.gateway.metrics import table
from replay_service.gateway.metrics.exposition import Exposition
from replay_service.gateway.metrics.process import ProcessMetrics

_log = structlog.get_logger()


def tell_damage(store: CorpusStore, metrics: ProcessMetrics) -> None:
    """Tell of the damage that this process has found in corpora that it reads."""
    for corpus in store.opened():
        metrics.corpus_is_damaged(corpus.manifest.name, sum(each.num_blocks for each in corpus.damage()))


def add_corpora(exposition: Exposition, store: CorpusStore, ingests: Ingests) -> None:
    """Add the series of corpora. A scrape asks no network: of object storage, it tells of corpora that were read."""
    for corpus in store.opened()[: table.MOST_CORPORA]:
        exposition.add(table.CORPUS_GENERATION, corpus.generation, corpus.manifest.name)
    if store.is_remote:
        return
    for name in ingests.told_of()[: table.MOST_CORPORA]:
        status = ingests.status(name)
        if status is not None:
            exposition.add(table.INGEST_ROWS, status.progress.num_rows, name)
            exposition.add(table.INGEST_RUNNING, int(status.is_alive), name)
            exposition.add(table.INGEST_PROGRESS, status.updated_at, name)


def look_at_corpora(store: CorpusStore) -> None:
    """Open corpora on a disk of this machine that nobody has read yet, so that their generation is told."""
    if store.is_remote:
        return
    try:
        names = store.names()
    except CorpusError:
        return  # readiness tells of it
    for name in names[: table.MOST_CORPORA]:
        try:
            store.get(name)
        except CorpusError as error:
            _log.debug("a damaged corpus has no series", corpus=name, problem=error.detail)
