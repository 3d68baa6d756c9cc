"""One answer of `/metrics`: what all processes have counted, and what journal and corpora tell now."""

from collections.abc import Callable

from replay_service.gateway.metrics import table
from replay_service.gateway.metrics.corpora import add_corpora, look_at_corpora, tell_damage
from replay_service.gateway.metrics.exposition import Exposition
from replay_service.gateway.metrics.process import ProcessMetrics
from replay_service.gateway.metrics.runs import RunSeries
from replay_service.gateway.service import ReplayService


class Scraper:
    """Answers scrapes. It reads runs without owning them, and costs little however many there are.

    Args:
        owns_runs: whether this process owns the runs now; of the replicas of a cluster, the owner alone tells of them.
    """

    def __init__(
        self, service: ReplayService, metrics: ProcessMetrics, owns_runs: Callable[[], bool] = lambda: True
    ) -> None:
        self._owns_runs = owns_runs
        self._service = service
        self._metrics = metrics
        self._runs = RunSeries(service, metrics.runs)

    def text(self, may_see: Callable[[str], bool]) -> str:
        """All series, of the runs that the caller may see."""
        exposition = Exposition(table.METRICS)
        look_at_corpora(self._service.corpora)
        tell_damage(self._service.corpora, self._metrics)
        exposition.add_counted(self._metrics.registry())
        if self._owns_runs():
            self._runs.add(exposition, may_see)
        add_corpora(exposition, self._service.corpora, self._service.ingests)
        return exposition.text()

    def close(self) -> None:
        self._runs.close()
