"""Curves of forgetting, put together: routes and pages show the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import InvalidRequest
from replay_service.gateway.curve_models import Comparison, CurveOfRun, DomainCurve, ForgettingCurve, ForgettingCurves
from replay_service.gateway.models import MAX_INT64
from replay_service.gateway.service import ReplayService
from replay_service.gateway.statistics import group_names
from replay_service.gateway.strata_choice import group_of
from replay_service.ledger.curve_points import CORPUS, CurvePoint
from replay_service.ledger.forgetting_curves import WORK_S, Curves
from replay_service.sampling.forgetting import LEVEL

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

MOST_COMPARED: Final = 8
_RATIOS: Final = ("injection_ratio", "achieved_ratio")


@dataclass(frozen=True, slots=True)
class Stretch:
    """The part of a curve that somebody asks for: steps from `first` to `last`, in at most `num_points` points."""

    first: int = 0
    last: int = MAX_INT64
    num_points: int = 500


@dataclass(frozen=True, slots=True)
class _Series:
    """Estimates of one group along the steps: int64 [n], float64 [n, 3] (nats, low, high), and what else there is."""

    step: Int64Array
    estimate: Float64Array
    others: dict[str, Float64Array]

    @classmethod
    def by_group(cls, points: Sequence[CurvePoint]) -> "dict[int, _Series]":
        """Those of every group that the points tell of, the corpus among them."""
        if not points:
            return {}
        rows = np.concatenate([each.estimates for each in points])
        place = np.repeat(np.arange(len(points)), [len(each.estimates) for each in points])
        step = np.array([each.step for each in points], dtype=np.int64)
        others = {name: np.array([getattr(each, name) for each in points], dtype=np.float64) for name in _RATIOS}
        estimate = np.stack([rows[name] for name in ("nats", "low", "high")], axis=1)
        found = {}
        for group in np.unique(rows["group"]).tolist():
            mine = rows["group"] == group
            at = place[mine]
            found[group] = cls(step[at], estimate[mine], {name: values[at] for name, values in others.items()})
        return found


_NOTHING: Final = _Series(np.empty(0, np.int64), np.empty((0, 3)), dict.fromkeys(_RATIOS, np.empty(0)))


def curves_of(
    service: ReplayService,
    run: str,
    stretch: Stretch,
    by_domain: bool = False,
    domain: str | None = None,
    work_s: float = WORK_S,
) -> ForgettingCurves:
    """The curve of a run's corpus, and those of its largest domains, or of one domain, if they are asked for.

    Args:
        work_s: for how long to go on with a curve that is not whole, seconds.

    Raises:
        UnknownRun: when there is no such run.
        InvalidRequest: when the stretch is empty, or the corpus has no such domain.
    """
    _check(stretch)
    overview = service.journal.overview(run)
    chosen = None if domain is None else group_of(service.corpus_of(overview.record).partition, domain)
    found = service.curves.read(run, work_s)
    series = _Series.by_group(found.points)
    groups = sorted(series.keys() - {CORPUS}) if by_domain or domain is not None else []
    names = group_names(service, overview.record, max(groups, default=0) + 1)
    config = overview.config
    return ForgettingCurves(
        run=run,
        as_of=found.as_of,
        attempt=found.attempt,
        is_whole=found.is_whole,
        level=LEVEL,
        budget_nats=config.budget.nats if config.is_auto else None,
        corpus=ForgettingCurve(**_columns(series.get(CORPUS, _NOTHING), stretch)),
        domains=[
            DomainCurve(name=names[each], **_columns(series[each], stretch))
            for each in groups
            if chosen in (None, each)
        ],
    )


def comparison_of(service: ReplayService, runs: Sequence[str], stretch: Stretch) -> Comparison:
    """The curves of several runs' corpora by step, with their ratios.

    Raises:
        UnknownRun: when one of the runs is not there.
        InvalidRequest: when the stretch is empty.
    """
    _check(stretch)
    for run in runs:
        service.journal.point(run)
    return Comparison(
        level=LEVEL, runs=[_of_run(run, service.curves.read(run, WORK_S / len(runs)), stretch) for run in runs]
    )


def _of_run(run: str, found: Curves, stretch: Stretch) -> CurveOfRun:
    series = _Series.by_group(found.points).get(CORPUS, _NOTHING)
    return CurveOfRun(
        run=run,
        as_of=found.as_of,
        attempt=found.attempt,
        is_whole=found.is_whole,
        **_columns(series, stretch),
        **_columns_of_others(series, stretch),
    )


def _check(stretch: Stretch) -> None:
    if stretch.last < stretch.first:
        raise InvalidRequest(
            f"`to` ({stretch.last}) is before `from` ({stretch.first}); ask for steps in ascending order"
        )


def _columns(series: _Series, stretch: Stretch) -> dict[str, list[Any]]:
    """A curve in buckets: of each the last estimate that is known, and the least and the greatest one."""
    chosen = (series.step >= stretch.first) & (series.step <= stretch.last)
    step, estimate = series.step[chosen], series.estimate[chosen]
    columns: dict[str, list[Any]] = {name: [] for name in ("step", "nats", "low", "high", "least_nats", "most_nats")}
    for begin, end in buckets(step, stretch.num_points):
        known = estimate[begin:end][~np.isnan(estimate[begin:end, 0])]
        last = known[-1].tolist() if len(known) else [None] * 3
        columns["step"].append(int(step[end - 1]))
        for name, value in zip(("nats", "low", "high"), last, strict=True):
            columns[name].append(value)
        columns["least_nats"].append(float(known[:, 0].min()) if len(known) else None)
        columns["most_nats"].append(float(known[:, 0].max()) if len(known) else None)
    return columns


def _columns_of_others(series: _Series, stretch: Stretch) -> dict[str, list[float | None]]:
    chosen = (series.step >= stretch.first) & (series.step <= stretch.last)
    step = series.step[chosen]
    ends = [end - 1 for _, end in buckets(step, stretch.num_points)]
    return {
        name: [None if np.isnan(each) else float(each) for each in values[chosen][ends]]
        for name, values in series.others.items()
    }


def buckets(step: Int64Array, most: int) -> list[tuple[int, int]]:
    """Where buckets of ascending steps (int64 [n]) begin and end; at most `most` of them, each with a step.

    Few steps have a bucket each. Many are dealt out by equal parts of the axis.
    """
    num = len(step)
    if num <= most:
        return [(i, i + 1) for i in range(num)]
    first, span = int(step[0]), int(step[-1] - step[0]) + 1
    bucket = [(int(each) - first) * most // span for each in step]
    begins = [0, *(i for i in range(1, num) if bucket[i] != bucket[i - 1])]
    return list(zip(begins, [*begins[1:], num], strict=True))
