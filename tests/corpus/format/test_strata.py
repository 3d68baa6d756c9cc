from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from replay_service.corpus.format.strata import ENOUGH_A_QUANTILE, Group, assign_strata, grown
from tests.support import sketch_of

NUM_QUANTILES = 4
ENOUGH = ENOUGH_A_QUANTILE * NUM_QUANTILES
OLD = [Group("web", 1, [1.0, 2.0, 3.0]), Group("code", 1, [0.5, 0.6, 0.7])]


def rows_of(**sizes: int) -> tuple[NDArray[np.float32], list[str], NDArray[np.int64]]:
    """Base losses of so many rows of each group, the groups' names and the group of each row."""
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(len(sizes)), list(sizes.values()))
    base_loss = rng.gamma(4.0, 1.0, len(group)) * (1 + group)
    order = rng.permutation(len(group))
    return base_loss[order].astype(np.float32), list(sizes), group[order]


def grown_by(groups: list[Group], is_all: bool = False, generation: int = 2, **sizes: int) -> list[Group]:
    base_loss, names, group = rows_of(**sizes)
    return grown(groups, base_loss, names, group, NUM_QUANTILES, generation, is_all)


@given(
    st.dictionaries(st.sampled_from(["web", "code", "books", "art", "zoo"]), st.integers(1, 200), min_size=1),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_groups_that_are_there_stay_as_they_are_and_new_ones_follow_by_name(
    sizes: dict[str, int], is_all: bool
) -> None:
    groups = grown_by(OLD, is_all, generation=7, **sizes)
    assert groups[:2] == OLD
    assert [each.name for each in groups[2:]] == sorted(set(sizes) - {"web", "code"})
    assert {each.generation for each in groups[2:]} <= {7}
    assert all(len(each.edges_nats) == NUM_QUANTILES - 1 for each in groups)
    assert all(each.edges_nats == sorted(each.edges_nats) for each in groups)


def test_known_groups_alone_bring_none() -> None:
    assert grown_by(OLD, web=10, code=3) == OLD


def edges_of(values: NDArray[Any]) -> list[float]:
    edges: list[float] = sketch_of(values).edges(NUM_QUANTILES).tolist()
    return edges


def test_a_group_with_enough_rows_has_quantiles_of_its_own() -> None:
    base_loss, _, group = rows_of(art=ENOUGH, zoo=ENOUGH - 1)
    art, zoo = grown_by([], art=ENOUGH, zoo=ENOUGH - 1)
    assert art.edges_nats == edges_of(base_loss[group == 0])
    assert zoo.edges_nats == edges_of(base_loss)


def test_a_group_of_few_rows_has_quantiles_of_its_own_when_no_more_will_come() -> None:
    base_loss, _, group = rows_of(art=5, zoo=40)
    art, zoo = grown_by([], is_all=True, art=5, zoo=40)
    assert art.edges_nats == edges_of(base_loss[group == 0])
    assert zoo.edges_nats == edges_of(base_loss[group == 1])


def test_one_row_makes_a_group() -> None:
    (only,) = grown_by([], is_all=True, art=1)
    assert len(set(only.edges_nats)) == 1


@pytest.mark.parametrize("num_quantiles", [1, 2, 5])
def test_strata_are_numbered_by_group_and_then_by_quantile(num_quantiles: int) -> None:
    edges = np.arange(1.0, num_quantiles)[None].repeat(3, axis=0)
    base_loss = np.arange(num_quantiles) + 0.5
    for group in range(3):
        strata = assign_strata(base_loss, np.full(num_quantiles, group), edges)
        assert strata.dtype == np.int64
        assert strata.tolist() == [group * num_quantiles + quantile for quantile in range(num_quantiles)]


def test_a_loss_on_an_edge_lies_below_it() -> None:
    edges = np.array([[1.0, 2.0, 2.0]])
    base_loss = np.array([0.0, 1.0, np.nextafter(1.0, 2.0), 2.0, 2.1, np.inf])
    assert assign_strata(base_loss, np.zeros(6, dtype=np.int64), edges).tolist() == [0, 0, 1, 1, 3, 3]


def test_no_rows_have_no_strata() -> None:
    assert assign_strata(np.empty(0), np.empty(0, dtype=np.int64), np.ones((2, 3))).shape == (0,)
