"""The map of a run's strata: a row for each domain, a column for each quantile of the base loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from replay_service.gateway.statistics_models import StratumStats

NUM_SHADES: Final = 7
UNTOLD: Final = "untold"
"""The class of a stratum that no report has told of."""

CELL, LABEL = 22, 150
"""Sizes in the drawing's units: of a cell, and of the room for the names of the domains."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One stratum in one of the two drawings."""

    x: int
    y: int
    shade: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """A domain's name, as much of it as there is room for, and where it stands."""

    name: str
    y: int


@dataclass(frozen=True, slots=True)
class StrataMap:
    """Two drawings side by side: the damage, and the share of the draws over the share of the corpus.

    Attributes:
        title: of a drawing.
        scale: what the shades mean, from the lightest one to the darkest.
        height, width: of a drawing.
    """

    title: str
    scale: tuple[str, str]
    rows: Sequence[Row]
    cells: Sequence[Cell]
    width: int
    height: int


def damage_map(strata: Sequence[StratumStats]) -> StrataMap:
    """The damage rate of each stratum; hatched where no report has told of it."""
    known = [each.damage_rate for each in strata if each.damage_rate is not None and each.num_reported]
    most = max(known, default=0.0)

    def cell(each: StratumStats) -> tuple[str, str]:
        if not each.num_reported or each.damage_rate is None:
            return UNTOLD, f"{each.name}: not told yet"
        return _shade(each.damage_rate, most), f"{each.name}: damage {each.damage_rate:.3g}"

    return _map("Damage rate", ("0", f"{most:.2g}"), strata, [cell(each) for each in strata])


def draws_map(strata: Sequence[StratumStats]) -> StrataMap:
    """How many times its share of the corpus each stratum is drawn."""
    num_samples = max(1, sum(each.num_samples for each in strata))
    times = [each.draw_share * num_samples / each.num_samples if each.num_samples else 0.0 for each in strata]
    most = max(times, default=0.0)
    found = [
        (_shade(value, most), f"{each.name}: drawn {value:.2g} times its share")
        for each, value in zip(strata, times, strict=True)
    ]
    return _map("Drawn over size", ("0", f"{most:.2g} times"), strata, found)


def _map(
    title: str, scale: tuple[str, str], strata: Sequence[StratumStats], found: Sequence[tuple[str, str]]
) -> StrataMap:
    row_of = {name: i for i, name in enumerate(dict.fromkeys(each.domain for each in strata))}
    cells = [
        Cell(LABEL + CELL * each.quantile, CELL * row_of[each.domain], shade, text)
        for each, (shade, text) in zip(strata, found, strict=True)
    ]
    num_columns = 1 + max((each.quantile for each in strata), default=0)
    rows = [Row(_shortened(name), CELL * i) for name, i in row_of.items()]
    return StrataMap(title, scale, rows, cells, LABEL + CELL * num_columns, CELL * len(rows))


def _shade(value: float, most: float) -> str:
    return f"s{round((NUM_SHADES - 1) * max(0.0, value) / most)}" if most > 0 else "s0"


def _shortened(name: str, most: int = 20) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
