"""One answer of `/metrics`: what all processes have counted, and what journal and corpora tell now."""

from collections.abc import Callable

from replay_service.gateway.metrics import table
from replay_service.gateway.metrics.corpora import add_corpora, look_at_corpora, tell_damage
from replay_service.gateway.metrics.exposition import Exposition
from replay_service.gateway.metrics.process import ProcessMetrics
from replay_service.gateway.metrics.runs import RunSeries
from replay_service.gateway.service import ReplayService


class Scraper:
    """Answers scrapes. It reads runs without owning them, and costs little however many there are."""

    def __init__(self, service: ReplayService, metrics: ProcessMetrics) -> None:
        self._service = service
        self._metrics = metrics
        self._runs = RunSeries(service, metrics.runs)

    def text(self, may_see: Callable[[str], bool]) -> str:
        """All series, of the runs that the caller may see."""
        exposition = Exposition(table.METRICS)
        look_at_corpora(self._service.corpora)
        tell_damage(self._service.corpora, self._metrics)
        exposition.add_counted(self._metrics.registry())
        self._runs.add(exposition, may_see)
        add_corpora(exposition, self._service.corpora, self._service.ingests)
        return exposition.text()

    def close(self) -> None:
        self._runs.close()
