"""The objects that routes work on: corpora, the journal and the owners of the runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from replay_service.corpus.reading.reader import Corpus, CorpusStore
from replay_service.gateway.claims import Claims
from replay_service.gateway.ingests import Ingests
from replay_service.gateway.watched import Watched
from replay_service.ledger.committer import WallClock, wall_clock_ms
from replay_service.ledger.forgetting_curves import CurveReader
from replay_service.ledger.journal import Journal
from replay_service.ledger.owners import Owners
from replay_service.ledger.readers import RunReaders
from replay_service.ledger.records import RunRecord
from replay_service.ledger.sampled_corpus import corpus_of_run
from replay_service.settings import ServiceSettings
from replay_service.wire.decoding import Heads


@dataclass(frozen=True, slots=True)
class ReplayService:
    """The parts of one running service.

    Attributes:
        now: tells the time as an ISO 8601 string in UTC.
        heads: of reports that were decoded before.
        clock: tells the time in milliseconds since 1970, as the times of events.
        watched: answers that watchers share.
    """

    settings: ServiceSettings
    corpora: CorpusStore
    journal: Journal
    owners: Owners
    readers: RunReaders
    curves: CurveReader
    ingests: Ingests
    now: Callable[[], str]
    heads: Heads = field(default_factory=Heads)
    clock: WallClock = wall_clock_ms
    claims: Claims = field(default_factory=Claims)
    watched: Watched = field(default_factory=Watched)

    def corpus_of(self, record: RunRecord) -> Corpus:
        """The corpus of a run; raises CorpusReplaced when another one has its name, CorpusUnavailable when none has."""
        return corpus_of_run(record, self.corpora.get)


def of_request(request: Request) -> ReplayService:
    service: ReplayService = request.app.state.service
    return service


Service = Annotated[ReplayService, Depends(of_request)]
