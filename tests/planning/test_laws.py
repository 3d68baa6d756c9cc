"""Both laws are found again in simulated runs of which they are known."""

from dataclasses import replace

import numpy as np
import pytest

from replay_service.planning.identified import forgetting_runs, target_runs
from replay_service.planning.laws import fit
from replay_service.planning.plan import ForgettingFit, TargetFit
from replay_service.planning.runs import Runs
from tests.planning.worlds import World, with_outliers

WORLDS = (World(), World(A=0.01, B=20.0, alpha=0.15, beta=0.6), World(A=300.0, B=30_000.0, alpha=0.6, beta=0.2))


def fitted(runs: Runs) -> ForgettingFit:
    law = forgetting_runs(runs)
    return ForgettingFit(law, np.tile(fit(law), (2, 1)))


def fitted_target(runs: Runs) -> TargetFit:
    law = target_runs(runs)
    assert law is not None
    return TargetFit(law, np.tile(fit(law), (2, 1)))


@pytest.mark.parametrize("world", WORLDS)
def test_without_noise_the_law_of_forgetting_is_found_exactly(world: World) -> None:
    found = fitted(replace(world, noise=0.0).runs())
    for name, each in found.coefficients().items():
        assert each.value == pytest.approx(getattr(world, name), rel=1e-3)
    assert found.relative_errors() == pytest.approx((0.0, 0.0), abs=1e-5)


def test_without_noise_the_law_of_the_target_loss_is_found_exactly() -> None:
    found = fitted_target(World(target_noise=0.0).runs())
    wanted = {"A'": 60.0, "alpha'": 0.1, "beta'": 0.2, "E": 0.8, "C": 0.4}
    assert {name: each.value for name, each in found.coefficients().items()} == pytest.approx(wanted, rel=1e-2)
    assert found.relative_error() == pytest.approx(0.0, abs=1e-5)


def test_with_noise_the_coefficients_are_near() -> None:
    found = fitted(World(noise=0.1).runs(times=2)).coefficients()
    assert found["alpha"].value == pytest.approx(0.4, abs=0.05)
    assert found["beta"].value == pytest.approx(0.3, abs=0.05)
    assert np.log(found["B"].value / 800) == pytest.approx(0.0, abs=0.5)


def test_outliers_move_the_fit_little() -> None:
    world = World()
    found = fitted(with_outliers(world.runs(), [3, 17, 28, 40], 10.0))
    assert found.forgetting(2e7, 1e7, 0.01)[0] == pytest.approx(float(world.forgetting(2e7, 1e7, 0.01)), rel=0.1)


def test_the_variable_is_the_weight_times_the_ratio() -> None:
    found = fitted(World(noise=0.0).runs(ratios=(0.0, 0.01, 0.03), weights=(1.0, 3.0)))
    assert found.coefficients()["B"].value == pytest.approx(800.0, rel=1e-3)
    law = found.for_controller(2e7, 1e7, 3.0)
    assert abs(law.B - 2400.0) < 3.0
    assert law.forgetting(0.01) == pytest.approx(float(found.forgetting(2e7, 1e7, 0.03)[0]))


def test_one_size_with_three_ratios_tells_alpha_by_the_ratios() -> None:
    found = fitted(World(noise=0.0).runs(sizes=(4e6,), lengths=(2e6,), times=2))
    assert found.coefficients()["alpha"].value == pytest.approx(0.4, rel=1e-2)
    assert found.law.free == (True, True, True, False)


def test_what_is_fixed_keeps_its_value() -> None:
    found = fitted(World().runs(sizes=(4e6,), lengths=(2e6,), ratios=(0.0, 0.05), times=3))
    assert found.draws[0][2:].tolist() == [0.5, 0.5]
    assert found.forgetting(4e6, 2e6, 0.05)[0] == pytest.approx(float(World().forgetting(4e6, 2e6, 0.05)), rel=0.1)


def test_a_target_loss_that_nothing_changes_is_a_constant_and_a_price() -> None:
    found = fitted_target(World().runs(sizes=(4e6,), lengths=(2e6,), ratios=(0.0, 0.05), times=3))
    assert set(found.coefficients()) == {"A'", "C"}
