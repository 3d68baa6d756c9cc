"""What one process counts of its own work.

Of several processes, each writes its counts into files that the scrape adds up, as prometheus-client's multiprocess
mode does. The files of a process that has ended stay, so that no sum goes back when it is started again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from replay_service.gateway.metrics import table
from replay_service.gateway.metrics.run_counts import RunCounts
from replay_service.gateway.metrics.table import Metric
from replay_service.ledger.meter import PHASES, Outcome, Phase

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client reads it when it is imported."""

REFUSED_AT_CONNECTION: Final = "unmatched"
"""The route of requests that no route has."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ProcessMetrics:
    """Counters of one process; it is also the meter of the owners in it.

    Attributes:
        counts_requests: False where gateways have counted the requests that come here.
        runs: counts by run.
    """

    def __init__(self, counts_requests: bool = True) -> None:
        self._registry = CollectorRegistry()
        self.counts_requests = counts_requests
        self.runs = RunCounts()
        self._requests = self._counter(table.HTTP_REQUESTS)
        self._durations = self._histogram(table.HTTP_DURATION)
        self._in_progress = self._gauge(table.IN_PROGRESS, "livesum")
        self._refused = self._counter(table.REFUSED)
        self._commits = self._histogram(table.COMMIT_DURATION)
        phases = self._counter(table.OWNER_SECONDS)
        self._phases = {each: phases.labels(each) for each in PHASES}
        self._takeovers = self._counter(table.OWNER_TAKEOVERS)
        self._damaged = self._gauge(table.CORPUS_DAMAGED, "livemax")

    # Requests

    @contextmanager
    def in_progress(self) -> Iterator[None]:
        """A request is being answered meanwhile."""
        with self._in_progress.track_inprogress():
            yield

    def answered(self, route: str, method: str, code: int) -> None:
        """Count an answer; a method that HTTP does not know is not named, since a caller may invent any."""
        self._requests.labels(route, method if method in _METHODS else "other", str(code)).inc()

    def took_so_long(self, route: str, seconds: float) -> None:
        """Count how long an answer took."""
        self._durations.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a request that reached no route."""
        self._refused.labels(reason).inc()

    def refused_at_connection(self, reason: str, code: int) -> None:
        """Count an answer that a connection gave by itself, past the application."""
        if self.counts_requests:
            self.refused(reason)
            self.answered(REFUSED_AT_CONNECTION, "other", code)

    # Corpora

    def corpus_is_damaged(self, corpus: str, num_blocks: int) -> None:
        """Of a corpus that this process reads, so many blocks are known to be damaged."""
        self._damaged.labels(corpus).set(num_blocks)

    # Owners

    def committed(self, seconds: float) -> None:
        self._commits.observe(seconds)

    def spent(self, phase: Phase, seconds: float) -> None:
        self._phases[phase].inc(seconds)

    def took(self) -> None:
        self._takeovers.inc()

    def counted(self, run: str, outcome: Outcome, num: int) -> None:
        self.runs.add(run, outcome, num)

    def reported_after(self, run: str, seconds: float) -> None:
        self.runs.observe_delay(run, seconds)

    # Reading

    def registry(self) -> CollectorRegistry:
        """What all processes of the service have counted; of a single process, what it has."""
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder is None:
            return self._registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        return registry

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.full_name, metric.help, metric.labels, registry=self._registry)

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.full_name, metric.help, metric.labels, buckets=metric.buckets, registry=self._registry)

    def _gauge(self, metric: Metric, mode: str) -> Gauge:
        return Gauge(
            metric.full_name,
            metric.help,
            metric.labels,
            multiprocess_mode=mode,  # type: ignore[arg-type]
            registry=self._registry,
        )


def forget_gauges(pid: int, folder: Path) -> None:
    """Forget the gauges of a process that has ended; its counters count on."""
    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
