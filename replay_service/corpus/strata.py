"""Strata: base-loss quantiles within each domain."""

import numpy as np
from numpy.typing import NDArray


def quantile_edges(
    base_loss: NDArray[np.floating], domain: NDArray[np.int64], num_domains: int, num_quantiles: int
) -> NDArray[np.float64]:
    """The inner edges of equal-mass base-loss quantiles, float64 [num_domains, num_quantiles - 1], nats per token.

    Args:
        base_loss: [num_samples], nats per token.
        domain: int64 [num_samples], each in [0, num_domains); every domain has at least one sample.
    """
    shares = np.arange(1, num_quantiles) / num_quantiles
    return np.stack([np.quantile(base_loss[domain == each], shares) for each in range(num_domains)])


def assign_strata(
    base_loss: NDArray[np.floating], domain: NDArray[np.int64], edges: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The stratum of each sample, int64 [num_samples]: domain * num_quantiles + quantile."""
    num_quantiles = edges.shape[1] + 1
    quantile = (base_loss[:, None] > edges[domain]).sum(axis=1)
    strata: NDArray[np.int64] = domain * num_quantiles + quantile
    return strata
