"""Repeats, ratios and their spread."""

import statistics
from collections.abc import Callable, Iterator, Sequence


def repeated(repeats: int, ways: Sequence[Callable[[], float]]) -> list[list[float]]:
    """What each way measured, [ways][repeats]; they take turns, so that a slow moment of the machine hits them all."""
    rounds = [[way() for way in ways] for _ in range(repeats)]
    return [list(each) for each in zip(*rounds, strict=True)]


def measured(own: Sequence[float], base: Sequence[float], unit: str) -> Iterator[str]:
    """Two cells: the median, and the ratio to `base` in the same round as median (least-most)."""
    median = statistics.median(own)
    yield f"{float(f'{1000 * median:.3g}'):,g} ms" if unit == "ms" else f"{median:,.0f} {unit}"
    ratios = [each / other for each, other in zip(own, base, strict=True)]
    yield f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
