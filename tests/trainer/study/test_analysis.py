"""What the analysis says of studies of which the truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from replay_trainer.study.advice import advice, best_arm
from replay_trainer.study.analysis import Analysis, ArmSummary, analyzed
from tests.trainer.study.worlds import NEAR_AND_FAR, SimulatedArm

ARMS = {
    "twice": SimulatedArm(0.0125, times=2.0),
    "three times": SimulatedArm(0.0125, times=3.0, extra=0.02),
    "the same": SimulatedArm(0.05),
    "half": SimulatedArm(0.05, times=0.5),
    "without rows": SimulatedArm(0.0),
    "far better": SimulatedArm(0.05, times=8.0),
}
NUM_STUDIES = 40


def arm_of(analysis: Analysis, name: str) -> ArmSummary:
    return next(each for each in analysis.arms if each.arm == name)


@pytest.fixture(scope="module")
def studies() -> list[Analysis]:
    return [analyzed(NEAR_AND_FAR.study(ARMS, seed), num_resamples=300) for seed in range(NUM_STUDIES)]


@pytest.mark.parametrize("name", ["twice", "three times", "half"])
def test_token_equivalence_is_recovered_and_its_intervals_hold_the_truth(studies: list[Analysis], name: str) -> None:
    """`tests.benchmarks.study_coverage` counts how often; interpolation errs by a part of the narrow intervals."""
    truth = ARMS[name].times
    found = [arm_of(each, name).equivalence for each in studies]
    ratios = [each.ratio for each in found if each is not None and each.ratio is not None]
    assert len(ratios) == NUM_STUDIES
    assert {each.outside for each in found if each is not None} == {"inside"}
    assert np.mean([each.value for each in ratios]) == pytest.approx(truth, rel=0.05)
    held = [each.low <= truth <= each.high for each in ratios]
    assert sum(held) >= 0.75 * NUM_STUDIES


@pytest.mark.parametrize("name", ["twice", "the same", "half"])
def test_what_is_kept_is_recovered_and_its_intervals_hold_the_truth(studies: list[Analysis], name: str) -> None:
    truth = NEAR_AND_FAR.kept(ARMS[name])
    found = [arm_of(each, name).kept for each in studies]
    assert np.mean([each.value for each in found]) == pytest.approx(truth, abs=0.01)
    assert sum(each.low <= truth <= each.high for each in found) >= 0.85 * NUM_STUDIES
    assert np.mean([each.high - each.low for each in found]) < 0.05


def test_an_arm_without_an_effect_is_seldom_called_better(studies: list[Analysis]) -> None:
    for name in ("the same", "without rows"):
        assert sum(arm_of(each, name).p_adjusted < 0.05 for each in studies) <= 0.125 * NUM_STUDIES
    assert all(arm_of(each, "twice").p_adjusted < 0.05 for each in studies)


def test_what_lies_beyond_the_frontier_is_said_to(studies: list[Analysis]) -> None:
    for each in studies:
        found = arm_of(each, "far better").equivalence
        assert found is not None and found.ratio is not None
        assert found.outside == "beyond" and found.is_open
        assert found.ratio.value == pytest.approx(2.0), "the most rows of the frontier over the arm's"


def test_the_price_at_equal_forgetting_is_the_difference_of_the_target_losses(studies: list[Analysis]) -> None:
    found = [arm_of(each, "three times").equivalence for each in studies]
    prices = [each.target_loss.value for each in found if each is not None]
    assert np.mean(prices) == pytest.approx(0.02 - 0.3 * (0.0375 - 0.0125), abs=0.002)


def test_the_worst_domain_is_not_made_worse_by_being_chosen(studies: list[Analysis]) -> None:
    """The greatest of noisy means is too great; read off the other half it is not."""
    same = replace(NEAR_AND_FAR, shares_D=(1.0,) * 8)
    paired = same.study({"an arm": SimulatedArm(0.05)}, 0)
    noisy = replace(
        paired, forgetting=paired.forgetting + np.random.default_rng(1).normal(0, 0.5, paired.forgetting.shape)
    )
    worst = [
        arm_of(
            analyzed(
                replace(noisy, forgetting=np.random.default_rng(seed).normal(0.3, 0.5, noisy.forgetting.shape)), 2
            ),
            "an arm",
        ).worst.value
        for seed in range(60)
    ]
    assert np.mean(worst) == pytest.approx(0.3, abs=0.05)


def test_one_seed_gives_figures_without_intervals_and_no_recommendation() -> None:
    analysis = analyzed(replace(NEAR_AND_FAR, num_seeds=1).study(ARMS, 0), 50)
    assert not analysis.has_intervals
    found = arm_of(analysis, "twice")
    assert found.kept.value > 0.1 and not found.kept.is_known and np.isnan(found.p_adjusted)
    assert "No recommendation: a target has one seed alone" in advice(analysis, analysis, 0.01)


def test_where_nothing_is_forgotten_there_is_nothing_to_recommend() -> None:
    paired = NEAR_AND_FAR.study(ARMS, 0)
    analysis = analyzed(replace(paired, forgetting=-paired.forgetting), 100)
    assert "the model forgets nothing" in advice(analysis, analysis, 0.01)


def test_without_a_frontier_arms_are_compared_with_the_first_one() -> None:
    paired = NEAR_AND_FAR.study(ARMS, 0)
    analysis = analyzed(replace(paired, is_frontier=np.zeros(len(paired.arms), dtype=bool)), 200)
    assert not analysis.has_frontier
    assert [each.is_reference for each in analysis.arms] == [True] + [False] * (len(paired.arms) - 1)
    assert arm_of(analysis, "twice").kept.value > 0.3
    assert arm_of(analysis, "twice").equivalence is None


def test_the_recommendation_is_the_arm_that_keeps_most_at_the_same_target_loss() -> None:
    paired = NEAR_AND_FAR.study(ARMS, 0)
    analysis = analyzed(paired, 1000)
    best = best_arm(analysis, margin=0.01)
    assert best is not None and best.arm == "far better"
    without = NEAR_AND_FAR.study({name: arm for name, arm in ARMS.items() if name != "far better"}, 0)
    said = advice(analyzed(without, 1000), analyzed(without, 1000), 0.01)
    assert said.startswith("Take 'twice': it keeps ") and "the same within 0.01" in said
    assert "To forget as little, plain cross-entropy needs" in said and "times its rows" in said
    costly = NEAR_AND_FAR.study({"costly": SimulatedArm(0.0125, times=3.0, extra=0.05)}, 0)
    assert "Stay with uniform rehearsal" in advice(analyzed(costly, 1000), analyzed(costly, 1000), 0.01)
