import numpy as np
import pytest

from replay_service.errors import UnusableRuns
from replay_service.planning.plan import Plan, make_plan, num_fits, planned
from replay_service.planning.settings import PlanSettings
from tests.planning.worlds import World

FEW = 20


def test_the_ratio_keeps_forgetting_within_the_budget(plan: Plan) -> None:
    truth = World().ratio(2e7, 1e7, 0.1)
    assert plan.ratio.low <= truth <= plan.ratio.high
    assert plan.ratio.value == pytest.approx(truth, rel=0.15)
    at_ratio = plan.forgetting.forgetting(plan.num_parameters, plan.target_tokens, plan.ratio.value)
    assert at_ratio[0] == pytest.approx(0.1)
    assert plan.forgotten.low <= World().forgetting(2e7, 1e7, 0.0) <= plan.forgotten.high


def test_the_controller_begins_with_the_planned_ratio(plan: Plan) -> None:
    law = plan.forgetting.for_controller(plan.num_parameters, plan.target_tokens, 1.0)
    assert law.least_ratio(0.1) == pytest.approx(plan.ratio.value)
    assert law.forgetting(0.02) == pytest.approx(float(plan.forgetting.forgetting(2e7, 1e7, 0.02)[0]))


def test_the_price_is_that_of_the_law(plan: Plan) -> None:
    assert plan.price is not None and plan.price_of_tokens is not None
    assert plan.price.value == pytest.approx(0.4 * plan.ratio.value, rel=0.5)
    assert plan.price_of_tokens.value > plan.price.value


def test_a_weight_divides_the_ratio(plan: Plan) -> None:
    heavy = planned(plan.forgetting, plan.target, PlanSettings(budget_nats=0.1, rehearsal_weight=4.0))
    assert heavy.ratio.value == pytest.approx(plan.ratio.value / 4)
    assert heavy.price is not None and plan.price is not None
    assert heavy.price.value == pytest.approx(plan.price.value)


def test_a_large_budget_needs_no_rehearsal_and_a_small_one_more_than_there_is(plan: Plan) -> None:
    assert planned(plan.forgetting, plan.target, PlanSettings(budget_nats=5.0)).ratio.value == 0
    beyond = planned(plan.forgetting, plan.target, PlanSettings(budget_nats=1e-4))
    assert beyond.ratio.value > 1 and beyond.price is None


def test_runs_without_a_target_loss_have_no_price() -> None:
    runs = World().runs()
    bare = type(runs)(*(getattr(runs, name) for name in runs.__slots__[:6]))
    settings = PlanSettings(budget_nats=0.1, num_resamples=FEW)
    found = make_plan(bare, settings)
    assert found.target is None and found.price is None
    assert (num_fits(bare, settings), num_fits(runs, settings)) == (FEW, 2 * FEW)


def test_progress_is_told_of_each_fit_and_the_same_seed_gives_the_same_plan(plan: Plan) -> None:
    told: list[int] = []
    again = make_plan(World().runs(), plan.settings, lambda: told.append(1))
    assert len(told) == num_fits(World().runs(), plan.settings)
    assert np.array_equal(again.forgetting.draws, plan.forgetting.draws)
    assert again.ratio == plan.ratio


@pytest.mark.parametrize("asked", [{"num_parameters": 1e9}, {"target_tokens": 1e9}])
def test_a_size_or_length_of_which_nothing_is_known_is_refused(asked: dict[str, float]) -> None:
    runs = World().runs(sizes=(4e6,), lengths=(2e6,))
    option = "--" + next(iter(asked)).replace("_", "-")
    with pytest.raises(UnusableRuns, match=f"{option} asks for 1,000,000,000; .* leave {option} out or add runs"):
        make_plan(runs, PlanSettings(budget_nats=0.1, **asked))  # type: ignore[arg-type]
