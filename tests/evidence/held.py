"""How often intervals held the truth, from the points of jobs. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np

from tests.benchmarks.ratios import as_table
from tests.evidence.tracked import Point

HEAD: Final = (
    "intervals", "held the truth", "least to most of a run", "bias", "half-width", "error of the truth", "not known",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """An estimate, and the truth that it is compared with; `low` and `high` are None where nothing was said."""

    run: str
    nats: float | None
    low: float | None
    high: float | None
    truth: float
    truth_error: float

    @classmethod
    def of(cls, run: str, estimate: dict[str, Any], truth: dict[str, float]) -> "Pair":
        found = (estimate[name] for name in ("nats", "low", "high"))
        return cls(run, *found, truth["nats"], truth["standard_error"])

    @property
    def is_known(self) -> bool:
        return self.nats is not None

    @property
    def half_width(self) -> float:
        assert self.low is not None and self.high is not None
        return (self.high - self.low) / 2

    @property
    def holds(self) -> bool:
        """Whether the interval holds the truth, as it was measured."""
        assert self.low is not None and self.high is not None
        return self.low <= self.truth <= self.high


@dataclass(frozen=True, slots=True)
class Held:
    """What pairs say together.

    Attributes:
        share: of the known intervals, those that held the measured truth.
        least, most: the same of the run where it is least, and most.
        bias: mean of estimate minus truth, nats.
        half_width: median, nats.
        truth_error: median standard error of the truth over the half-width of its interval.
        share_unknown: of all points, those where nothing was said.
    """

    num: int
    share: float
    least: float
    most: float
    bias: float
    half_width: float
    truth_error: float
    share_unknown: float


def held(pairs: Iterable[Pair]) -> Held | None:
    """None where no interval was given."""
    everything = list(pairs)
    known = [each for each in everything if each.is_known]
    if not known:
        return None
    by_run = [
        float(np.mean([each.holds for each in some]))
        for _, some in groupby(sorted(known, key=lambda each: each.run), key=lambda each: each.run)
    ]
    return Held(
        num=len(known),
        share=float(np.mean([each.holds for each in known])),
        least=min(by_run),
        most=max(by_run),
        bias=float(np.mean([each.nats - each.truth for each in known if each.nats is not None])),
        half_width=float(np.median([each.half_width for each in known])),
        truth_error=float(np.median([each.truth_error / each.half_width for each in known])),
        share_unknown=1.0 - len(known) / len(everything),
    )


def of_corpus(points: Iterable[Point], kind: str) -> Iterator[Pair]:
    for each in points:
        yield Pair.of(each.run, each.estimate, each.truth[kind])


def of_domains(points: Iterable[Point], kind: str, only: str | None = None) -> Iterator[Pair]:
    for each in points:
        for domain, estimate in each.estimates.items():
            if only in (None, domain):
                yield Pair.of(each.run, estimate, each.truths[kind][domain])


def summary(points: Sequence[Point]) -> str:
    """Of the corpus and of domains, against each kind of truth."""
    rows = []
    for kind in points[0].truth:
        named = {"corpus": of_corpus(points, kind), "domains": of_domains(points, kind)}
        rows += [[f"{name}, {kind} rows", *_cells(held(pairs))] for name, pairs in named.items()]
    return as_table(HEAD, rows)


def by_domain(points: Sequence[Point], kind: str) -> str:
    """Of each domain, against one kind of truth."""
    domains = sorted(points[0].estimates)
    return as_table(HEAD, [[each, *_cells(held(of_domains(points, kind, each)))] for each in domains])


def _cells(found: Held | None) -> list[str]:
    if found is None:
        return ["-", "-", "-", "-", "-", "100%"]
    return [
        f"{found.share:.0%} of {found.num}",
        f"{found.least:.0%} to {found.most:.0%}",
        f"{found.bias:+.3f}",
        f"{found.half_width:.3f}",
        f"{found.truth_error:.0%}",
        f"{found.share_unknown:.0%}",
    ]
