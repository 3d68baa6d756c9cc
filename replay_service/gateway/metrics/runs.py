"""Series of runs: how many there are in each state, and the numbers of those that are open."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nlargest

from replay_service.gateway.condition import heard_at, lifecycles
from replay_service.gateway.metrics import table
from replay_service.gateway.metrics.exposition import Exposition
from replay_service.gateway.metrics.run_counts import CountsOfRun, RunCounts
from replay_service.gateway.metrics.run_numbers import RunNumbers, RunWatch, read_numbers
from replay_service.gateway.service import ReplayService
from replay_service.gateway.statistics import group_names
from replay_service.ledger.lifecycle import LIFECYCLES
from replay_service.ledger.meter import OUTCOMES
from replay_service.ledger.records import RunHead, RunRecord


@dataclass(frozen=True, slots=True)
class WrittenRun:
    """The series of a run's numbers, written in the background: of many domains, to write them takes longest."""

    series: Exposition
    num_unmeasured: int


class RunSeries:
    """Adds the series of runs to a scrape."""

    def __init__(self, service: ReplayService, counts: RunCounts) -> None:
        self._service = service
        self._counts = counts
        self._watch = RunWatch(self._written)

    def add(self, exposition: Exposition, may_see: Callable[[str], bool]) -> None:
        """Add the series of the runs that the caller may see."""
        heads = self._service.journal.heads()
        visible = [each for each in heads if may_see(each.run)]
        state_of = dict(zip((each.run for each in visible), lifecycles(self._service, visible), strict=True))
        num_in = Counter(state_of.values())
        for state in LIFECYCLES:
            exposition.add(table.RUNS, num_in[state], state)
        chosen = open_runs(heads)
        written = self._watch.latest(chosen)
        for run, each in written.items():
            self._counts.see_unmeasured(run, each.num_unmeasured)
        counts = self._counts.without({each.run for each in heads if each.closed})
        for head in chosen:
            if may_see(head.run):
                exposition.add(table.RUN_STATE, 1, head.run, state_of[head.run])
                _add_head(exposition, head)
                _add_counts(exposition, head.run, counts.get(head.run))
                if head.run in written:
                    exposition.include(written[head.run].series)

    def close(self) -> None:
        """End what goes on in the background."""
        self._watch.close()

    def _written(self, run: str) -> WrittenRun:
        numbers = read_numbers(self._service.readers, run, self._domains)
        series = Exposition(table.OF_RUNS)
        _add_numbers(series, run, numbers)
        return WrittenRun(series, numbers.num_unmeasured)

    def _domains(self, record: RunRecord, num: int) -> Sequence[str]:
        return group_names(self._service, record, num)


def open_runs(heads: Sequence[RunHead]) -> list[RunHead]:
    """The runs that have series of their own: of those that are not closed, the ones that were active last."""
    return nlargest(table.MOST_RUNS, (each for each in heads if not each.closed), key=_activity)


def _activity(head: RunHead) -> tuple[int, str]:
    return heard_at(head.point) or 0, head.point.incarnation[1]


def _add_head(exposition: Exposition, head: RunHead) -> None:
    exposition.add(table.RUN_NEXT_STEP, head.next_step, head.run)
    exposition.add(table.RUN_LAST_PLAN, _seconds(head.point.planned_at), head.run)
    exposition.add(table.RUN_LAST_REPORT, _seconds(head.point.reported_at), head.run)


def _seconds(at_ms: int | None) -> float | None:
    return None if at_ms is None else at_ms / 1000.0


def _add_counts(exposition: Exposition, run: str, counts: CountsOfRun | None) -> None:
    """Nothing of runs whose owner is another service."""
    if counts is not None:
        for outcome in OUTCOMES:
            exposition.add(table.RUN_SAMPLES, counts.outcomes[outcome], run, outcome)
        exposition.add_histogram(table.RUN_DELAY, counts.delay, run)


def _add_numbers(exposition: Exposition, run: str, numbers: RunNumbers) -> None:
    forgetting = numbers.forgetting
    exposition.add(table.RUN_INFO, 1, run, numbers.corpus, numbers.policy, numbers.signal)
    exposition.add(table.RUN_PENDING, numbers.num_pending, run)
    exposition.add(table.RUN_DUE, numbers.rows_due, run)
    exposition.add(table.RUN_REHEARSED, numbers.rows_rehearsed, run)
    exposition.add(table.RUN_RATIO, numbers.injection_ratio, run)
    exposition.add(table.RUN_FORGETTING, forgetting.nats, run)
    exposition.add(table.RUN_FORGETTING_LOW, forgetting.low, run)
    exposition.add(table.RUN_FORGETTING_HIGH, forgetting.high, run)
    exposition.add(table.RUN_BUDGET, numbers.budget_nats, run)
    exposition.add(table.RUN_COVERED, forgetting.share_covered, run)
    exposition.add(table.RUN_REPEATS, numbers.repeat_share, run)
    for name, domain in nlargest(table.MOST_DOMAINS, numbers.domains.items(), key=lambda each: each[1].rank):
        exposition.add(table.DOMAIN_LOW, domain.forgetting.low, run, name)
        exposition.add(table.DOMAIN_HIGH, domain.forgetting.high, run, name)
        exposition.add(table.DOMAIN_DAMAGE, domain.damage, run, name)
