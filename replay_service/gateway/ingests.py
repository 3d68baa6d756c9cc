"""Ingests that the service was asked for: each a process of its own, whose progress stands beside its corpus."""

import contextlib
import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from replay_service.corpus.ingest.settings import IngestJob
from replay_service.corpus.ingest.status import STATUS_NAME, IngestStatus, read_status, write_begun, write_stopped
from replay_service.corpus.shards.places import AllowedPlaces
from replay_service.corpus.shards.urls import printable
from replay_service.errors import CorpusError, CorpusUnavailable, IngestRunning, NoIngest

JOB: Final = (sys.executable, "-m", "replay_service.corpus.ingest.job")
LOG_NAME: Final = "ingest.log"

_log = structlog.get_logger()


class Ingests:
    """Starts ingests into a folder of corpora, and stops them.

    Args:
        corpora: the folder.
        allowed: where shards may come from: folders, and URLs up to where they may differ.
        stop_timeout_s: how long a process may take to stop before it is killed. It resumes all the same.
        command: what runs a job that it reads from standard input.
    """

    def __init__(
        self,
        corpora: Path,
        allowed: Sequence[str],
        stop_timeout_s: float,
        command: Sequence[str] = JOB,
    ) -> None:
        self._corpora = corpora
        self._allowed = AllowedPlaces(tuple(allowed))
        self._stop_timeout_s = stop_timeout_s
        self._command = command
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, job: IngestJob) -> None:
        """Start a job, whose corpus's folder is made at once.

        Raises:
            SourceForbidden: when shards may not come from there.
            IngestRunning: when the corpus is being written.
            CorpusUnavailable: when the system does not let the folder be written or the process be started.
        """
        source = self._allowed.resolve(job.settings.source)
        job = replace(job, settings=replace(job.settings, source=source, allowed=self._allowed))
        if importlib.util.find_spec("ray") is None:
            raise CorpusError("this service can serve corpora but not make them: install 'replay-service[corpus]'")
        folder = job.settings.corpus_folder
        with self._lock:
            if self._is_running(folder.name) or self._runs_elsewhere(folder.name):
                raise IngestRunning(f"corpus {folder.name!r} is being written; wait, or stop it with DELETE")
            process = self._started(job)
            self._processes[folder.name] = process
        _log.info("ingest started", corpus=folder.name, source=printable(job.settings.source), pid=process.pid)

    def _started(self, job: IngestJob) -> "subprocess.Popen[bytes]":
        folder = job.settings.corpus_folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOG_NAME).open("ab") as log:
                process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
                )
            try:
                # Before it has its orders, so that what it writes itself comes later.
                write_begun(folder, process.pid, time.time())
            except OSError:
                process.kill()
                process.wait()
                raise
        except OSError as error:
            raise CorpusUnavailable(
                f"the ingest cannot be started: {error}; see to the folder of corpora and to the limits of the process"
            ) from error
        # Whether it still reads them, its status will tell.
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as orders:
            orders.write(job.to_json().encode())
        return process

    def stop(self, corpus: str) -> None:
        """Stop a corpus's ingest; what it has scored is kept. Waits until the process has ended.

        Raises:
            NoIngest: when nothing is being written.
            IngestRunning: when another process writes the corpus, which this one did not start.
        """
        with self._lock:
            if self._is_running(corpus):
                self._end([corpus])
            elif self._runs_elsewhere(corpus):
                raise IngestRunning(f"corpus {corpus!r} is written by a process that this service did not start")
            else:
                raise NoIngest(f"nothing writes corpus {corpus!r}; there is nothing to stop")

    def status(self, corpus: str) -> IngestStatus | None:
        """How the latest ingest of a corpus goes, whoever has started it."""
        return read_status(self._corpora / corpus)

    def told_of(self) -> list[str]:
        """The names of corpora whose latest ingest can be told of."""
        return sorted(path.parent.name for path in self._corpora.glob(f"*/{STATUS_NAME}"))

    def is_alive(self, corpus: str) -> bool:
        return self._is_running(corpus) or self._runs_elsewhere(corpus)

    def close(self) -> None:
        """Stop all that this service has started; they go on where they were when they are started again."""
        with self._lock:
            self._end([each for each in self._processes if self._is_running(each)])

    def _is_running(self, corpus: str) -> bool:
        process = self._processes.get(corpus)
        return process is not None and process.poll() is None

    def _runs_elsewhere(self, corpus: str) -> bool:
        status, mine = self.status(corpus), self._processes.get(corpus)
        return status is not None and status.is_alive and (mine is None or mine.pid != status.pid)

    def _end(self, corpora: Sequence[str]) -> None:
        for each in corpora:
            self._processes[each].terminate()
        for each in corpora:
            process = self._processes[each]
            try:
                process.wait(self._stop_timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # A signal may have ended it before it listened for one.
            write_stopped(self._corpora / each, process.pid, time.time())
