"""Clusters: groups of rows that the base model sees alike. They are fitted once, on the rows of the first segment."""

import os
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.wire.columns import list_rows

CLUSTERS_NAME: Final = "clusters.npy"
_MOST_ROWS_TO_FIT: Final = 20_000


class Clusters:
    """The centres of a corpus's clusters, kept in its folder."""

    def __init__(self, folder: Path, num_clusters: int) -> None:
        self._path = folder / CLUSTERS_NAME
        self._num_clusters = num_clusters
        self._centres: NDArray[np.float32] | None = None

    def group_of(self, staged: pa.Table) -> NDArray[np.str_]:
        """The cluster of each staged row (with a column `feature`), as its group's name."""
        feature = list_rows(staged["feature"].combine_chunks()).astype(np.float32)
        if self._centres is None:
            self._centres = self._fitted(feature)
        nearest = _distances(feature, self._centres).argmin(axis=1)
        width = len(str(self._num_clusters - 1))
        names: NDArray[np.str_] = np.array([f"cluster-{each:0{width}d}" for each in range(self._num_clusters)])[nearest]
        return names

    def _fitted(self, feature: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 [num_clusters, D]; what a killed ingest has fitted stays, unless it was another kind of corpus."""
        shape = (self._num_clusters, feature.shape[1])
        if not self._path.exists() or np.load(self._path).shape != shape:
            centres = _fit(feature, self._num_clusters)
            temporary = self._path.with_name(f".{CLUSTERS_NAME}.{os.getpid()}")
            with temporary.open("wb") as file:
                np.save(file, centres)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        fitted: NDArray[np.float32] = np.load(self._path)
        return fitted


def _fit(feature: NDArray[np.float32], num_clusters: int) -> NDArray[np.float32]:
    """MiniBatchKMeans on a sample of the rows, evenly over all of them; fewer rows than clusters are repeated."""
    from sklearn.cluster import MiniBatchKMeans

    chosen = feature[:: -(-len(feature) // _MOST_ROWS_TO_FIT)]
    if len(chosen) <= num_clusters:
        return np.resize(chosen, (num_clusters, feature.shape[1]))
    model = MiniBatchKMeans(num_clusters, random_state=0, n_init=3, batch_size=4096).fit(chosen)
    centres: NDArray[np.float32] = model.cluster_centers_.astype(np.float32)
    return centres


def _distances(feature: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances less what does not depend on the centre: float32 [n, num_clusters]."""
    distances: NDArray[np.float32] = (centres**2).sum(axis=1) - 2 * feature @ centres.T
    return distances
