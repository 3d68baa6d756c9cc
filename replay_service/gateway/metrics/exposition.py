"""The text format of Prometheus, version 0.0.4, for series that are made anew at each scrape.

prometheus-client writes such series too, at ten times the cost: a service of 50 runs has some thousands.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from replay_service.gateway.metrics.table import Metric


@dataclass(slots=True)
class Histogram:
    """Counts of values by bucket.

    Attributes:
        counts: of each bucket alone; the last one has no upper bound.
    """

    buckets: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.buckets) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.buckets, value)] += 1
        self.total += value


class Exposition:
    """Collects series and writes them, those of one metric together.

    Args:
        metrics: whose series may be added; their order is the order of the text.
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics
        self._lines: dict[str, list[str]] = {each.name: [] for each in metrics}

    def add(self, metric: Metric, value: float | None, *labels: str) -> None:
        """Add one series; nothing where there is no value, since a gauge is absent rather than NaN."""
        if value is not None:
            self._lines[metric.name].append(f"{metric.full_name}{_braces(metric, labels)} {value}")

    def add_histogram(self, metric: Metric, found: Histogram, *labels: str) -> None:
        lines, name, so_far = self._lines[metric.name], metric.full_name, 0
        for bound, count in zip([*map(str, found.buckets), "+Inf"], found.counts, strict=True):
            so_far += count
            lines.append(f"{name}_bucket{_braces(metric, labels, bound)} {so_far}")
        lines.append(f"{name}_sum{_braces(metric, labels)} {found.total}")
        lines.append(f"{name}_count{_braces(metric, labels)} {so_far}")

    def include(self, other: "Exposition") -> None:
        """Add all series of another one, whose metrics are among these."""
        for name, lines in other._lines.items():
            self._lines[name] += lines

    def add_counted(self, registry: CollectorRegistry) -> None:
        """Add what prometheus-client has counted, but for the times at which its series began."""
        of_name = {each.full_name.removesuffix("_total"): each for each in self._metrics}
        for family in registry.collect():
            metric = of_name[family.name]
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
                    braces = f"{{{pairs}}}" if pairs else ""
                    self._lines[metric.name].append(f"{sample.name}{braces} {sample.value}")

    def text(self) -> str:
        """All series, each metric after its description; metrics without series are left out."""
        parts = list[str]()
        for each in self._metrics:
            if self._lines[each.name]:
                parts += [f"# HELP {each.full_name} {each.help}", f"# TYPE {each.full_name} {each.kind}"]
                parts += self._lines[each.name]
        return "".join(f"{part}\n" for part in parts)


def _braces(metric: Metric, labels: Sequence[str], le: str | None = None) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(metric.labels, labels, strict=True)]
    if le is not None:
        pairs.append(f'le="{le}"')
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    if value.isalnum():
        return value
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
