import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.sampling.controller import ForgettingBudget, ForgettingLaw, decide
from replay_service.sampling.events import Adjusted, Event
from replay_service.sampling.forgetting import Forgetting
from replay_service.sampling.injection import exact_ratio
from replay_service.sampling.plan import adjustment_due, last_before_decision
from replay_service.sampling.run_config import Feedback, RunConfig
from replay_service.sampling.run_state import RunState, fold
from tests.sampling.worlds import created_of, image, initial_state, plans_of, report_of


def told(nats: float, error: float) -> Forgetting:
    return Forgetting(nats, nats - 2 * error, nats + 2 * error, 60.0, 1.0, 99, 40, None, standard_error=error)


NOT_KNOWN = Forgetting(None, None, None, 2.0, 1.0, 99, 40, "too few first visits")
LAW = ForgettingLaw(A=2e3, B=1e3, alpha=0.5, beta=0.1, num_parameters=1.35e8, target_tokens=1e6)


def test_the_law_and_its_inverse_agree() -> None:
    for budget in (0.02, 0.05, 0.1):
        assert LAW.forgetting(LAW.least_ratio(budget)) == pytest.approx(budget)
    assert LAW.least_ratio(1e9) == 0.0


@pytest.mark.parametrize(
    "law",
    [
        ForgettingLaw(A=1e300, B=1e300, alpha=1e-3, beta=100.0, num_parameters=1.0, target_tokens=1e18),
        ForgettingLaw(A=1e-300, B=1e-300, alpha=100.0, beta=1e-3, num_parameters=1e18, target_tokens=1.0),
        ForgettingLaw(A=1e300, B=1e-300, alpha=1e-300, beta=1.0, num_parameters=1.0, target_tokens=1.0),
    ],
)
def test_a_law_of_any_numbers_says_where_to_begin(law: ForgettingLaw) -> None:
    assert law.forgetting(0.5) >= 0.0
    assert ForgettingBudget(nats=1e-300, law=law).start() in ("0.2", "0.001")


def test_the_law_says_where_to_begin() -> None:
    budget = ForgettingBudget(nats=0.1, law=LAW)
    assert float(exact_ratio(budget.start())) == pytest.approx(LAW.least_ratio(0.1), abs=1e-6)
    assert ForgettingBudget(nats=1e-6, law=LAW).start() == "0.2"
    assert ForgettingBudget(nats=1e9, law=LAW).start() == "0.001"
    assert ForgettingBudget().start() == "0.01"


@given(
    st.floats(-1, 10),
    st.floats(0, 3),
    st.floats(0.001, 1),
    st.integers(1000, 200_000).map(lambda n: Fraction(n, 10**6)),
    st.floats(0, 1),
    st.floats(0.001, 1),
)
def test_a_decision_is_bounded_and_goes_the_right_way(
    nats: float, error: float, budget: float, ratio: Fraction, seeing_ratio: float, pace: float
) -> None:
    decision = decide(ForgettingBudget(nats=budget), ratio, told(nats, error), seeing_ratio, pace)
    if decision is None:
        return
    chosen = exact_ratio(decision.injection_ratio)
    assert chosen > ratio or chosen >= Fraction(min(seeing_ratio, 0.2))
    assert Fraction(1, 1000) <= chosen <= Fraction(1, 5)
    assert 0.7**pace * float(ratio) - 1e-9 <= float(chosen) <= 2**pace * float(ratio) + 1e-6 + 1e-9
    assert (chosen > ratio) == (nats > budget)
    assert abs(nats - budget) > error
    assert f"{budget:g} nats" in decision.reason
    assert f"{nats:+.4f} nats ({nats - 2 * error:+.4f} to {nats + 2 * error:+.4f})" in decision.reason
    assert "100% of the mass" in decision.reason


@given(st.floats(-1, 10), st.floats(-1, 10), st.floats(0, 0.01))
def test_the_more_is_forgotten_the_more_it_rehearses(one: float, other: float, error: float) -> None:
    def chosen(nats: float) -> Fraction:
        decision = decide(ForgettingBudget(nats=0.5), Fraction(1, 50), told(nats, error), 0.0)
        return Fraction(1, 50) if decision is None else exact_ratio(decision.injection_ratio)

    assert chosen(min(one, other)) <= chosen(max(one, other))


def test_half_the_pace_twice_is_the_whole_pace() -> None:
    budget, ratio, forecast = ForgettingBudget(nats=0.1), Fraction(1, 100), told(0.15, 0.0)
    whole = decide(budget, ratio, forecast, 0.0)
    once = decide(budget, ratio, forecast, 0.0, 0.5)
    assert whole is not None
    assert once is not None
    twice = decide(budget, exact_ratio(once.injection_ratio), forecast, 0.0, 0.5)
    assert twice is not None
    assert float(twice.injection_ratio) == pytest.approx(float(whole.injection_ratio), abs=3e-6)
    assert float(whole.injection_ratio) == pytest.approx(0.01 * 1.5**1.5, abs=1e-6)


def test_it_stays_where_nothing_is_known_or_the_difference_may_be_noise() -> None:
    budget, ratio = ForgettingBudget(nats=0.1), Fraction(1, 100)
    assert decide(budget, ratio, NOT_KNOWN, 0.01) is None
    assert decide(budget, ratio, told(0.05, 0.06), 0.0) is None
    assert decide(budget, ratio, told(0.15, 0.06), 0.0) is None
    assert decide(budget, ratio, told(0.1005, 0.0), 0.0) is None
    assert decide(budget, Fraction(1, 5), told(9.0, 0.001), 0.0) is None
    assert decide(budget, Fraction(1, 1000), told(-0.1, 0.001), 0.0) is None


@given(st.floats(0.01, 2.0), st.floats(0.0, 0.5), st.floats(0.0, 0.5))
def test_the_less_sure_it_is_the_less_it_changes(nats: float, one: float, other: float) -> None:
    def change(error: float) -> float:
        decision = decide(ForgettingBudget(nats=0.5), Fraction(1, 50), told(nats, error), 0.0)
        return 0.0 if decision is None else abs(math.log(50 * float(decision.injection_ratio)))

    assert change(max(one, other)) <= change(min(one, other)) + 1e-3


def test_where_too_few_samples_tell_of_forgetting_it_rises_until_enough_do() -> None:
    budget, ratio = ForgettingBudget(nats=0.1), Fraction(1, 100)
    decision = decide(budget, ratio, NOT_KNOWN, 0.0123456)
    assert decision is not None
    assert (decision.injection_ratio, "too few" in decision.reason) == ("0.012346", True)
    assert decide(budget, ratio, NOT_KNOWN, 7.0) == (budget.most_ratio, decision.reason)
    assert decide(budget, ratio, told(0.01, 0.001), 0.0123456) is None


def test_a_small_job_with_little_to_do_does_not_go_blind() -> None:
    """Eight rows a step and a half-life of 50 steps: at the least ratio there would be a report in 125 steps."""
    state = initial_state(
        [4000] * 8, num_quantiles=4, global_batch_size=8, injection_ratio="auto", half_life_steps=50.0
    )
    for step in range(2000):
        adjusted = adjustment_due(state)
        if adjusted is not None:
            fold(state, adjusted)
        (plan,) = plans_of(state, step)
        fold(state, plan)
        if len(plan.rows):
            fold(state, report_of(step, plan.rows["sample_id"], loss=2.0, base_loss=2.0))
    assert state.forgetting().nats is not None
    assert float(state.ratio) == pytest.approx(state.config.seeing_ratio, abs=2e-6)


def damaged(ratio: float) -> float:
    """A model that forgets less the more it rehearses, as the law says."""
    return 0.4 / (1.0 + 60.0 * ratio) ** 0.8


@dataclass(slots=True)
class Life:
    """An `auto` run of a job whose forgetting follows its ratio with a delay."""

    state: RunState
    journal: list[Event] = field(default_factory=list)
    forgotten: list[float] = field(default_factory=list)
    """True forgetting at each step."""
    ratio: list[float] = field(default_factory=list)
    """The injection ratio of each step."""

    def turns(self) -> int:
        """How often a rise of the ratio was followed by a fall, or a fall by a rise."""
        moves = np.sign(np.diff(self.ratio))
        moves = moves[moves != 0]
        return int((moves[1:] != moves[:-1]).sum())


def lived(num_steps: int, delay: float = 10.0, **config: object) -> Life:
    """`delay` is after how many steps forgetting has come 63 % of the way to where the ratio leads it."""
    state = initial_state(
        [4000] * 8, num_quantiles=4, global_batch_size=64, injection_ratio="auto", half_life_steps=20.0, **config
    )
    random, life, forgotten = np.random.default_rng(3), Life(state), 0.0
    for step in range(num_steps):
        adjusted = adjustment_due(state)
        if adjusted is not None:
            fold(state, adjusted)
            life.journal.append(adjusted)
            assert adjustment_due(state) is None
        (plan,) = plans_of(state, step)
        fold(state, plan)
        life.forgotten.append(forgotten)
        life.ratio.append(float(state.ratio))
        losses = (2.0 + forgotten + 0.1 * random.standard_normal(len(plan.rows))).tolist()
        forgotten += (damaged(float(state.ratio)) - forgotten) / delay
        report = report_of(step, plan.rows["sample_id"], loss=losses, base_loss=2.0)
        life.journal.append(plan)
        if len(plan.rows):
            fold(state, report)
            life.journal.append(report)
    return life


LEAST = next(p for p in np.linspace(0, 0.2, 2001) if damaged(p) <= 0.15)
"""The least fixed ratio that holds 0.15 nats."""


@pytest.mark.parametrize("delay", [5.0, 40.0])
@pytest.mark.parametrize("first_ratio", ["0.002", "0.2"])
@pytest.mark.parametrize("feedback", [Feedback(), Feedback("fenced", 4)])
def test_it_holds_the_budget_with_little_and_does_not_swing(feedback: Feedback, first_ratio: str, delay: float) -> None:
    budget = ForgettingBudget(nats=0.15, first_ratio=first_ratio)
    life = lived(500, delay, budget=budget, feedback=feedback)
    # Fifty reports of a half-life tell forgetting to a fifth, so that the ratio wanders a little.
    late = slice(340, None)
    assert max(life.forgotten[late]) < 1.2 * budget.nats
    assert np.mean(life.forgotten[late]) > 0.8 * budget.nats
    assert 0.8 * LEAST < np.mean(life.ratio[late]) < 1.5 * LEAST
    assert max(life.ratio[late]) / min(life.ratio[late]) < 3.0
    assert life.turns() <= 6


def test_from_a_tenth_of_what_is_needed_it_is_there_after_a_few_half_lives() -> None:
    life = lived(160, budget=ForgettingBudget(nats=0.15, first_ratio="0.002"))
    assert max(life.ratio[:20]) < 0.2 * LEAST
    assert life.ratio[120] > 0.8 * LEAST


@pytest.mark.parametrize("every_steps", [2, 7])
def test_deciding_oftener_does_not_make_it_swing(every_steps: int) -> None:
    life = lived(400, budget=ForgettingBudget(nats=0.15, first_ratio="0.01", every_steps=every_steps))
    assert max(life.forgotten[200:]) < 1.15 * 0.15
    assert max(life.ratio[200:]) / min(life.ratio[200:]) < 2.5
    assert 0.8 * LEAST < np.mean(life.ratio[200:]) < 1.3 * LEAST


def test_its_journal_folds_to_the_same_state() -> None:
    life = lived(200, budget=ForgettingBudget(nats=0.1))
    assert any(isinstance(event, Adjusted) for event in life.journal)
    sizes = life.state.walk.sizes.tolist()
    again = RunState.initial(created_of(sizes, life.state.num_quantiles, life.state.config))
    for event in life.journal:
        fold(again, event)
    assert image(again) == image(life.state)


def test_plans_are_made_up_to_the_next_decision() -> None:
    state = initial_state([100], injection_ratio="auto", budget=ForgettingBudget(every_steps=10))
    assert [last_before_decision(state, last) for last in (3, 9, 10, 99)] == [3, 9, 9, 9]
    assert last_before_decision(initial_state([100]), 99) == 99


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"nats": 0.0}, "budget.nats"),
        ({"least_ratio": "0"}, "ascend"),
        ({"first_ratio": "0.5"}, "ascend"),
        ({"most_ratio": "0.0001"}, "ascend"),
        ({"every_steps": -1}, "every_steps"),
        ({"most_ratio": "much"}, "much"),
    ],
)
def test_a_budget_that_cannot_be_held_is_refused(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ForgettingBudget(**arguments)  # type: ignore[arg-type]


def test_a_law_has_positive_coefficients() -> None:
    with pytest.raises(ValueError, match=r"law\.alpha"):
        ForgettingLaw(1.0, 1.0, 0.0, 1.0, 1.0, 1.0)


def test_an_auto_ratio_goes_with_no_schedule_and_comes_back_from_json() -> None:
    from replay_service.sampling.schedule import Schedule

    with pytest.raises(ValueError, match="schedule"):
        RunConfig(8, "auto", schedule=Schedule("warmup", 10))
    config = RunConfig(8, "auto", budget=ForgettingBudget(nats=0.1, law=LAW))
    assert RunConfig.from_json(config.to_json()) == config
    assert config.ratio == exact_ratio(config.budget.start())
