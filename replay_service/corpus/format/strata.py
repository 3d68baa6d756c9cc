"""Strata: base-loss quantiles within each group. A stratum's edges never move while the corpus grows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.corpus.format.sketch import QuantileSketch

ENOUGH_A_QUANTILE: Final = 32
"""Rows a quantile that a group must show before its own quantiles are trusted, while more of it may come."""


@dataclass(frozen=True, slots=True)
class Group:
    """A domain, a cluster, or a value of a column; its strata stand together.

    Attributes:
        name: what it is.
        generation: the generation of the corpus that brought it.
        edges_nats: the inner edges between its quantiles, nats per token; a loss on an edge lies below it.
    """

    name: str
    generation: int
    edges_nats: list[float]


def grown(
    groups: Sequence[Group],
    base_loss: NDArray[np.floating],
    names: Sequence[str],
    group: NDArray[np.int64],
    num_quantiles: int,
    generation: int,
    is_all: bool,
) -> list[Group]:
    """The groups, and after them those of new rows that are not among them, in name order.

    A new group's edges are the quantiles of its rows. If there are few of them and more may come, they are those of
    all the new rows: strata are then uneven in that group, but tell easy from hard.

    Args:
        groups: those that there are; they stay as they are.
        base_loss: [n], nats per token, of the new rows.
        names: the different groups of the new rows.
        group: int64 [n], an index into `names`.
        generation: the one that brings the rows.
        is_all: whether no more rows will come for now.
    """
    known = {each.name for each in groups}
    new = []
    for name in sorted(set(names) - known):
        own = base_loss[group == names.index(name)]
        trusted = is_all or len(own) >= ENOUGH_A_QUANTILE * num_quantiles
        sketch = QuantileSketch()
        sketch.add(own if trusted else base_loss)
        new.append(Group(name, generation, sketch.edges(num_quantiles).tolist()))
    return [*groups, *new]


def assign_strata(
    base_loss: NDArray[np.floating], group: NDArray[np.int64], edges: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The stratum of each sample, int64 [n]: group * num_quantiles + quantile.

    Args:
        base_loss: [n], nats per token.
        group: int64 [n].
        edges: float64 [num_groups, num_quantiles - 1], nats per token.
    """
    num_quantiles = edges.shape[1] + 1
    quantile = (base_loss[:, None] > edges[group]).sum(axis=1)
    strata: NDArray[np.int64] = group * num_quantiles + quantile
    return strata
