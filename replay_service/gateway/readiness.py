"""Readiness: whether the journal and the corpora can be reached, found out at a constant cost.

Anybody may ask, as often as they like. So one look serves all who ask within a second, it reads nothing of any run, and
it is given up after a while: a database that does not answer must not keep anybody waiting.
"""

import asyncio
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from replay_service.corpus.reading.reader import CorpusStore
from replay_service.errors import NotReady, ReplayError
from replay_service.ledger.journal import Journal
from replay_service.settings import ServiceSettings

_log = structlog.get_logger()

ANSWER_WITHIN_S: Final = 1.5
"""How long a look may take; who asks hears that it takes too long then."""

LEAST_FREE_BYTES: Final = 1 << 20
"""Of the disk of `root`: with less, the journal cannot grow."""

_KEPT_S: Final = 1.0


class Readiness:
    """Looks whether the service can answer.

    Args:
        least_free_bytes: of the disk of `root`; with less, it is full.
        monotonic: a clock, seconds.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        journal: Journal,
        store: CorpusStore,
        least_free_bytes: int = LEAST_FREE_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._store = store
        self._least_free_bytes = least_free_bytes
        self._monotonic = monotonic
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        self._look: asyncio.Future[str] | None = None
        self._looked_at = 0.0
        self._problem = ""

    async def check(self) -> None:
        """Raises NotReady, with the reason, when the service could not answer a request now."""
        if self._look is None or (self._look.done() and self._monotonic() - self._looked_at >= _KEPT_S):
            self._looked_at = self._monotonic()
            self._look = asyncio.get_running_loop().run_in_executor(self._thread, self._problem_found)
        try:
            problem = await asyncio.wait_for(asyncio.shield(self._look), ANSWER_WITHIN_S)
        except TimeoutError:
            problem = f"the journal or the corpora have not answered within {ANSWER_WITHIN_S} s"
        self._tell(problem)
        if problem:
            raise NotReady(problem)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _problem_found(self) -> str:
        """The reason why the service cannot answer; empty if it can."""
        try:
            self._journal.ping()
            self._store.check()
        except ReplayError as error:
            return error.detail
        except (SQLAlchemyError, OSError) as error:
            _log.error("the journal or the corpora cannot be read", exc_info=error)
            return f"the journal or the corpora cannot be read: {error.__class__.__name__}; the service's log says more"
        if shutil.disk_usage(self._settings.root).free < self._least_free_bytes:
            return "the disk of the service's root is full"
        return ""

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("not ready" if problem else "ready again", problem=problem)
        self._problem = problem
