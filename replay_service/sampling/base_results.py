"""What the base model made of samples, when their corpus was scored."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class BaseResults(NamedTuple):
    """Results of samples, each [n]."""

    loss_nats: NDArray[np.float64]
    """Mean loss of a prediction; NaN where the sample cannot be read."""
    num_wrong: NDArray[np.int64]
    """Predictions that it got wrong; any number where the sample cannot be read."""
