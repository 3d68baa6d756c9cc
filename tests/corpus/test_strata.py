import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.corpus.strata import assign_strata, quantile_edges


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 8), st.integers(8, 200))
@settings(max_examples=50, deadline=None)
def test_strata_of_a_domain_have_equal_mass(seed: int, num_domains: int, num_quantiles: int, num_rows: int) -> None:
    rng = np.random.default_rng(seed)
    base_loss = rng.permutation(num_domains * num_rows) / 7.0
    domain = rng.permutation(np.repeat(np.arange(num_domains), num_rows))
    edges = quantile_edges(base_loss, domain, num_domains, num_quantiles)
    counts = np.bincount(assign_strata(base_loss, domain, edges), minlength=num_domains * num_quantiles)
    assert counts.sum() == num_domains * num_rows
    assert np.abs(counts - num_rows / num_quantiles).max() <= 1.0


@given(st.integers(0, 10**6), st.integers(2, 6))
@settings(max_examples=50, deadline=None)
def test_a_sample_lies_between_the_edges_of_its_stratum(seed: int, num_quantiles: int) -> None:
    rng = np.random.default_rng(seed)
    base_loss = rng.gamma(2.0, 1.0, 60).round(1).astype(np.float32)
    domain = np.concatenate([np.arange(3), rng.integers(0, 3, 57)])
    edges = quantile_edges(base_loss, domain, 3, num_quantiles)
    assert edges.shape == (3, num_quantiles - 1)
    assert (np.diff(edges, axis=1) >= 0).all()
    fences = np.pad(edges, ((0, 0), (1, 1)), constant_values=((0, 0), (-np.inf, np.inf)))
    group, quantile = np.divmod(assign_strata(base_loss, domain, edges), num_quantiles)
    assert np.array_equal(group, domain)
    assert (fences[group, quantile] < base_loss).all()
    assert (base_loss <= fences[group, quantile + 1]).all()


def test_domains_have_edges_of_their_own() -> None:
    base_loss = np.array([1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0])
    domain = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    edges = quantile_edges(base_loss, domain, 2, 2)
    assert edges.tolist() == [[2.5], [25.0]]
    assert assign_strata(base_loss, domain, edges).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_one_quantile_makes_one_stratum_a_domain() -> None:
    base_loss, domain = np.array([1.0, 9.0, 5.0]), np.array([0, 0, 1])
    edges = quantile_edges(base_loss, domain, 2, 1)
    assert edges.shape == (2, 0)
    assert assign_strata(base_loss, domain, edges).tolist() == [0, 0, 1]


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_a_domain_of_fewer_samples_than_quantiles_loses_none(num_rows: int) -> None:
    base_loss, domain = np.arange(num_rows, dtype=np.float32), np.zeros(num_rows, dtype=np.int64)
    strata = assign_strata(base_loss, domain, quantile_edges(base_loss, domain, 1, 8))
    assert len(strata) == num_rows
    assert ((strata >= 0) & (strata < 8)).all()


def test_equal_losses_share_a_stratum() -> None:
    base_loss, domain = np.full(10, 2.0), np.zeros(10, dtype=np.int64)
    assert len(np.unique(assign_strata(base_loss, domain, quantile_edges(base_loss, domain, 1, 4)))) == 1
