from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from replay_service.corpus.ingest.clusters import CLUSTERS_NAME, Clusters
from replay_service.wire.columns import wide_list


def staged(feature: NDArray[np.floating]) -> pa.Table:
    return pa.table({"feature": wide_list(feature.astype(np.float16))})


def blobs(num_blobs: int, num_rows: int, seed: int = 0) -> tuple[pa.Table, NDArray[np.int64]]:
    """Rows around `num_blobs` places that lie far from each other, and the place of each."""
    rng = np.random.default_rng(seed)
    place = rng.integers(0, num_blobs, num_rows)
    centres = 10.0 * np.eye(num_blobs, 8)
    return staged(centres[place] + rng.normal(0.0, 0.1, (num_rows, 8))), place


def test_rows_that_are_alike_are_in_one_cluster(tmp_path: Path) -> None:
    rows, place = blobs(5, 400)
    names = Clusters(tmp_path, 5).group_of(rows)
    pairs = set(zip(place.tolist(), names.tolist(), strict=True))
    assert len(pairs) == len(set(names.tolist())) == 5


def test_clusters_are_fitted_once_and_kept(tmp_path: Path) -> None:
    first, _ = blobs(4, 300)
    clusters = Clusters(tmp_path, 4)
    names = clusters.group_of(first)
    centres = (tmp_path / CLUSTERS_NAME).read_bytes()
    other, _ = blobs(8, 300, seed=1)
    here, later = clusters.group_of(other), Clusters(tmp_path, 4).group_of(other)
    assert here.tolist() == later.tolist()
    assert (tmp_path / CLUSTERS_NAME).read_bytes() == centres
    assert Clusters(tmp_path, 4).group_of(first).tolist() == names.tolist()
    assert [path.name for path in tmp_path.iterdir()] == [CLUSTERS_NAME]


def test_the_same_rows_give_the_same_clusters(tmp_path: Path) -> None:
    rows, _ = blobs(6, 500)
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found.append(Clusters(tmp_path / name, 3).group_of(rows).tolist())
    assert found[0] == found[1]
    assert (tmp_path / "one" / CLUSTERS_NAME).read_bytes() == (tmp_path / "two" / CLUSTERS_NAME).read_bytes()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_row_is_in_the_cluster_of_the_nearest_centre(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(7, 5)).astype(np.float32)
    with TemporaryDirectory() as folder:
        np.save(Path(folder) / CLUSTERS_NAME, centres)
        feature = rng.normal(size=(50, 5)).astype(np.float16)
        names = Clusters(Path(folder), 7).group_of(staged(feature))
    distance = ((feature.astype(np.float64)[:, None] - centres) ** 2).sum(axis=2)
    chosen = np.array([int(name.removeprefix("cluster-")) for name in names])
    assert distance[np.arange(50), chosen] == pytest.approx(distance.min(axis=1), abs=1e-5)


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_fewer_rows_than_clusters_are_a_cluster_each(tmp_path: Path, num_rows: int) -> None:
    rows = staged(10.0 * np.eye(num_rows, 4))
    names = Clusters(tmp_path, 3).group_of(rows)
    assert len(set(names.tolist())) == num_rows
    assert np.load(tmp_path / CLUSTERS_NAME).shape == (3, 4)


def test_rows_that_are_all_alike_are_in_one_cluster(tmp_path: Path) -> None:
    names = Clusters(tmp_path, 3).group_of(staged(np.ones((100, 4))))
    assert len(set(names.tolist())) == 1


@pytest.mark.parametrize(("num_clusters", "names"), [(1, {"cluster-0"}), (11, {f"cluster-{i:02d}" for i in range(11)})])
def test_names_of_clusters_sort_by_their_numbers(tmp_path: Path, num_clusters: int, names: set[str]) -> None:
    rows = staged(10.0 * np.eye(11, 11))
    found = Clusters(tmp_path, num_clusters).group_of(rows)
    assert set(found.tolist()) == names


@pytest.mark.parametrize(("num_clusters", "width"), [(3, 8), (4, 6)])
def test_centres_that_were_left_by_another_kind_of_corpus_are_fitted_anew(
    tmp_path: Path, num_clusters: int, width: int
) -> None:
    np.save(tmp_path / CLUSTERS_NAME, np.zeros((num_clusters, width), dtype=np.float32))
    rows, _ = blobs(4, 100)
    assert len(set(Clusters(tmp_path, 4).group_of(rows).tolist())) == 4
    assert np.load(tmp_path / CLUSTERS_NAME).shape == (4, 8)
