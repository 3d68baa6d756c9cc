import pytest

from replay_service.errors import UnusableRuns
from replay_service.planning.holdout import predict_largest
from tests.planning.worlds import LENGTHS, SIZES, World


def test_the_longest_runs_of_the_largest_model_are_predicted_from_the_others() -> None:
    found = predict_largest(World().runs())
    assert set(found.runs.num_parameters) == {SIZES[-1]} and set(found.runs.target_tokens) == {LENGTHS[-1]}
    assert (len(found.runs), found.num_fitted) == (5, 20)
    of_forgetting, of_loss = found.errors
    assert of_loss < of_forgetting < 0.15
    assert predict_largest(World(noise=0.0).runs()).errors == pytest.approx((0.0, 0.0), abs=1e-3)


def test_where_one_variable_alone_varies_it_alone_is_held_out() -> None:
    found = predict_largest(World(noise=0.0).runs(sizes=(4e6,)))
    assert (len(found.runs), found.num_fitted) == (5, 10)
    assert found.errors[0] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    ("sizes", "lengths", "said"),
    [
        ((4e6,), (2e6,), "one size and one length"),
        (SIZES[:2], LENGTHS, "two sizes or more"),
        (SIZES, LENGTHS[:2], "two lengths or more"),
    ],
)
def test_too_few_sizes_or_lengths_are_refused(sizes: tuple[float, ...], lengths: tuple[float, ...], said: str) -> None:
    with pytest.raises(UnusableRuns, match=f"{said}.*add such runs|{said}.*add runs"):
        predict_largest(World().runs(sizes=sizes, lengths=lengths))


def test_a_largest_model_that_was_not_trained_longest_is_refused() -> None:
    runs = World().runs()
    kept = runs.take((runs.num_parameters < SIZES[-1]) | (runs.target_tokens < LENGTHS[-1]))
    with pytest.raises(UnusableRuns, match="the largest model has no run of the greatest length"):
        predict_largest(kept)
