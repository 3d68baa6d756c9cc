"""What the base model made of samples, when their corpus was scored."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


class BaseResults(NamedTuple):
    """Results of samples, each [n]."""

    loss_nats: NDArray[np.float64]
    """Mean loss of a prediction; NaN where the sample cannot be read."""
    num_wrong: Int64Array
    """Predictions that it got wrong; any number where the sample cannot be read."""

    def measured(self, num_predictions: Int64Array) -> NDArray[np.bool_]:
        """Which reports of the samples tell anything, [n]: they have predictions, and the sample can be read."""
        return (num_predictions > 0) & np.isfinite(self.loss_nats)

    def too_many_gains(self, num_gains: Int64Array) -> NDArray[np.bool_]:
        """Which samples gained more predictions than the base model got wrong, [n]."""
        return num_gains > self.num_wrong
