"""The frontier: what uniform rehearsal with cross-entropy reaches as its ratio is swept.

Each ratio gives a point in the plane of target loss and forgetting. Between ratios the target loss and, where all
ratios forget something, the logarithm of forgetting are interpolated linearly in log(1 + rows / least rows): in it the
forgetting law (Bethune et al., ICML 2025) is close to a line, and no rehearsal is zero.

Shapes: J ratios, B resamples with the sample itself at index 0.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

_LEAST: Final = 1e-12
"""Nats per token that count as none on a logarithmic scale."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """Of one target.

    Attributes:
        rows: float64 [J], rehearsed rows, ascending, all different; at least two.
        forgetting: float64 [B, J], nats per token.
        target_loss: float64 [B, J], nats per token.
    """

    rows: Float64Array
    forgetting: Float64Array
    target_loss: Float64Array

    def scale(self, rows: Float64Array) -> Float64Array:
        """Rows on the scale of interpolation."""
        scaled: Float64Array = np.log1p(rows / self.rows[self.rows > 0].min())
        return scaled

    def unscaled(self, scaled: Float64Array) -> Float64Array:
        """Rows of places on that scale."""
        rows: Float64Array = self.rows[self.rows > 0].min() * np.expm1(scaled)
        return rows

    def at_rows(self, rows: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Forgetting and target loss with so many rows, float64 [B] each; beyond the ends, those of the ends.

        Args:
            rows: float64 [B].
        """
        places, at = np.broadcast_to(self.scale(self.rows), self.forgetting.shape), self.scale(rows)
        curved = _interpolated(at, places, self._curved(self.forgetting))
        forgetting = np.exp(curved) if self._is_positive else curved
        return forgetting, _interpolated(at, places, self.target_loss)

    def rows_for(self, forgetting: Float64Array) -> tuple[Float64Array, NDArray[np.int64]]:
        """How many rows it takes to forget no more.

        Args:
            forgetting: float64 [B].

        Returns:
            Places on the scale of rows, float64 [B], and int64 [B]: 1 where the most rows of the frontier do not
            suffice, -1 where none are needed, else 0. There the places are those of the ends.
        """
        # More rows that forget more are of no use, so the curve falls.
        falling = np.minimum.accumulate(self.forgetting, axis=1)
        places = np.broadcast_to(self.scale(self.rows), falling.shape)
        found = _interpolated(-self._curved(forgetting), -self._curved(falling), places)
        return found, np.where(forgetting < falling[:, -1], 1, np.where(forgetting > falling[:, 0], -1, 0))

    def at_target_loss(self, target_loss: Float64Array) -> tuple[Float64Array, NDArray[np.bool_]]:
        """The least forgetting at a target loss of at most this, float64 [B], and whether the frontier reaches it.

        It is outside where the target loss is below that of every ratio, or above.
        """
        order = np.argsort(self.target_loss, axis=1, kind="stable")
        losses = np.take_along_axis(self.target_loss, order, axis=1)
        falling = np.minimum.accumulate(np.take_along_axis(self.forgetting, order, axis=1), axis=1)
        is_inside = (losses[:, 0] <= target_loss) & (target_loss <= losses[:, -1])
        return _interpolated(target_loss, losses, falling), is_inside

    @property
    def _is_positive(self) -> bool:
        return bool((self.forgetting > 0).all())

    def _curved(self, forgetting: Float64Array) -> Float64Array:
        """Forgetting on the scale of interpolation."""
        curved: Float64Array = np.log(np.maximum(forgetting, _LEAST)) if self._is_positive else forgetting
        return curved


def _interpolated(at: Float64Array, places: Float64Array, values: Float64Array) -> Float64Array:
    """`values` [B, J] at ascending `places` [B, J], at one place of each row, [B]; beyond an end, the value there."""
    index, last = np.arange(len(values)), values.shape[1] - 1
    right = np.clip((places <= at[:, None]).sum(axis=1), 1, last)
    low, high = places[index, right - 1], places[index, right]
    share = np.clip((at - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)
    between: Float64Array = (1.0 - share) * values[index, right - 1] + share * values[index, right]
    return between
