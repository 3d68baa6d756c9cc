import numpy as np
import pytest

from replay_service.planning.bootstrap import Interval, draws_of, resamples
from replay_service.planning.identified import Levels, forgetting_runs
from replay_service.planning.plan import ForgettingFit
from tests.planning.worlds import World


def test_an_interval_holds_its_estimate_and_may_be_open() -> None:
    draws = np.concatenate([[3.0], np.arange(10.0, 110.0)])
    assert Interval.of(draws) == Interval(3.0, 3.0, 107.0)
    assert Interval.of(np.array([1.0, 1.0, np.inf])).high == np.inf


def test_resamples_tell_apart_what_the_runs_do() -> None:
    runs = World().runs(sizes=(4e6,), lengths=(2e6, 9e6), ratios=(0.0, 0.05))
    found = list(resamples(runs, 50, seed=0))
    assert len(found) == 50
    for index in found:
        levels = Levels.of(runs.take(index))
        assert (levels.num_ratios, levels.num_lengths) == (2, 2)


def test_the_same_seed_gives_the_same_resamples() -> None:
    first, second = (np.array(list(resamples(World().runs(), 3, seed=7))) for _ in range(2))
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize("design", [{"sizes": (1e6, 2e7), "lengths": (3e5, 1e7)}, {"sizes": (2e7,), "lengths": (1e7,)}])
def test_intervals_hold_the_truth_and_are_not_far_too_wide(design: dict[str, tuple[float, ...]]) -> None:
    world = World(noise=0.1)
    truth, held, widths = np.log(world.forgetting(2e7, 1e7, 0.02)), 0, []
    for seed in range(12):
        runs = world.runs(seed, ratios=(0.0, 0.01, 0.05), times=2, **design)
        law = forgetting_runs(runs)
        fit = ForgettingFit(law, draws_of(law, list(resamples(runs, 20, seed)), lambda: None))
        found = Interval.of(np.log(fit.forgetting(2e7, 1e7, 0.02)))
        held += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert held >= 10
    assert np.median(widths) < 1.0
