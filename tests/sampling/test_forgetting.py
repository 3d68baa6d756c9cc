import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.controller import ForgettingBudget
from replay_service.sampling.events import Configured
from replay_service.sampling.fold import fold
from replay_service.sampling.forgetting import FirstVisits, Forgetting, student
from replay_service.sampling.injection import exact_ratio
from replay_service.sampling.latest import MOST_REPORTS, REPORT_ROW, LatestReports
from replay_service.sampling.lines import LEAST_REPORTS, Part, lines_of
from replay_service.sampling.plan import adjustment_due
from replay_service.sampling.run_state import RatioSince
from tests.sampling.forgetting_worlds import WORLDS, Coverage, World, coverage
from tests.sampling.worlds import image, initial_state, planned, report_of

SIZES = np.array([600, 400, 300, 700])
FAST = (
    "two of six domains drift",
    "saturating growth",
    "drift that reversed",
    "visits ease their stratum, half a batch",
    "late reports, ranks come and go",
    "the corpus triples",
)


def visits_of(step: object, stratum: object, excess: object, **changes: object) -> FirstVisits:
    """First visits that were drawn in proportion to the strata's sizes."""
    strata = np.asarray(stratum)
    reports = np.zeros(len(strata), dtype=REPORT_ROW)
    reports["step"], reports["stratum"], reports["excess_nats"] = step, strata, excess
    chance = SIZES / SIZES.sum()
    reports["chance"] = chance[strata]
    shared = {"step": int(reports["step"].max()), "sizes": SIZES, "chance": chance, "num_quantiles": 2}
    return FirstVisits(reports, **{**shared, "half_life": 100.0, "prior_weight": 8.0, **changes})  # type: ignore[arg-type]


def reported(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Steps and strata of reports, two a step."""
    random = np.random.default_rng(seed)
    return np.arange(num) // 2, random.choice(4, num, p=SIZES / SIZES.sum()), random


def test_where_all_samples_lost_the_same_it_is_that() -> None:
    step, stratum, _ = reported(100)
    visits = visits_of(step, stratum, 0.5)
    for found in (visits.of_corpus(), *visits.of_domains()):
        assert found.nats == pytest.approx(0.5)
        assert found.low == pytest.approx(0.5, abs=1e-6)
        assert (found.level, found.share_covered, found.step, found.reason) == (0.95, 1.0, 49, None)


def test_it_does_not_lag_while_forgetting_grows() -> None:
    step, stratum, random = reported(200)
    growing = visits_of(step, stratum, 0.01 * step + 0.01 * random.standard_normal(200))
    assert growing.of_corpus().nats == pytest.approx(0.99, abs=0.02)


def test_a_shorter_window_with_reports_of_too_few_steps_is_not_compared_with() -> None:
    step = 3 * (np.arange(400) // 8)
    stratum, noise = np.arange(400) % 4, np.random.default_rng(3).standard_normal(400)
    found = visits_of(step, stratum, 0.5 + 0.1 * noise).of_corpus()
    assert found.nats == pytest.approx(0.5, abs=0.1)
    # Else the difference to a line of nothing would be taken for a bend.
    assert found.high is not None and found.high - found.nats < 0.2  # type: ignore[operator]


def test_its_window_ends_at_the_latest_step_and_is_no_longer_than_needed() -> None:
    step, stratum, random = reported(2000)
    found = visits_of(step, stratum, random.standard_normal(2000)).of_corpus()
    assert 60 <= found.num_effective < 120
    assert 60 / 2 < found.window_steps < 120
    few = visits_of(step, stratum, random.standard_normal(2000), half_life=5.0).of_corpus()
    assert few.window_steps == 15


@pytest.mark.parametrize("num", [1, 7, 60, 500])
def test_estimates_that_are_made_together_are_those_of_each_alone(num: int) -> None:
    random = np.random.default_rng(num)
    step, stratum = random.integers(0, 2000, num), random.choice(4, num, p=SIZES / SIZES.sum())
    visits = visits_of(step, stratum, random.standard_normal(num))
    corpus, *domains = visits.of_all()
    assert visits.of_corpus() == corpus
    for domain, found in enumerate(domains):
        mine = np.arange(4) // 2 == domain
        alone = replace(visits, sizes=np.where(mine, SIZES, 0), reports=visits.reports[mine[stratum]])
        other = alone.of_corpus()
        assert (found.reason is None, found.num_effective) == (other.reason is None, pytest.approx(other.num_effective))
        assert (found.low, found.high) == (other.low, other.high) or found.low == pytest.approx(other.low, rel=1e-6)


def test_a_window_is_no_longer_than_the_run() -> None:
    step, stratum, _ = reported(40)
    for found in visits_of(step, stratum, 0.5).of_domains():
        assert found.window_steps == 20
        assert found.reason is None or "in the last 20 steps" in found.reason


def nothing_said(found: Forgetting, because: str) -> bool:
    numbers = (found.nats, found.low, found.high)
    return numbers == (None,) * 3 and because in str(found) and found.reason in str(found)  # type: ignore[operator]


def test_of_too_few_reports_or_steps_nothing_is_said() -> None:
    step, stratum, random = reported(4)
    assert nothing_said(visits_of(step, stratum, 0.5).of_corpus(), f"takes {LEAST_REPORTS:g}")
    many = visits_of(np.zeros(100), random.choice(4, 100), random.standard_normal(100))
    assert nothing_said(many.of_corpus(), "worth 1.0 independent ones")
    assert nothing_said(many.since(5).of_corpus(), "no first visit")


def test_where_a_part_of_the_corpus_is_hardly_drawn_nothing_is_said_of_it() -> None:
    step, _, random = reported(200)
    chance = np.array([0.6, 0.39, 0.01, 0.0])
    found = visits_of(step, random.integers(0, 2, 200), random.standard_normal(200), chance=chance)
    assert nothing_said(found.of_corpus(), "tell of 50% of the mass")
    assert found.of_corpus().share_covered == 0.5
    one, other = found.of_domains()
    assert one.nats is not None
    assert nothing_said(other, "no first visit")


def test_a_jump_makes_the_interval_wide() -> None:
    step, stratum, random = reported(400)
    noise = 0.1 * random.standard_normal(400)
    level, jumped = (visits_of(step, stratum, noise + (step >= at)).of_corpus() for at in (999, 190))
    assert jumped.high - jumped.low > 2 * (level.high - level.low)  # type: ignore[operator]


@pytest.mark.parametrize("jump", [0.0, 0.5])
def test_its_interval_is_of_the_variance_and_of_what_shorter_windows_differ_by_beyond_their_noise(jump: float) -> None:
    step, stratum, random = reported(400)
    visits = visits_of(step, stratum, 0.1 * random.standard_normal(400) + jump * (step >= 185))
    share, chance = (SIZES / SIZES.sum()).reshape(2, 2), visits.chance.reshape(2, 2)
    part = Part(visits.reports, visits.reports["stratum"].astype(np.int64), share, chance)
    ((line, *shorter),) = lines_of([part], visits.step, visits.half_life, visits.prior_weight)
    noise = [max(each.variance - line.variance, 0.1 * line.variance) for each in shorter]
    bends = [(each.nats - line.nats) ** 2 - least for each, least in zip(shorter, noise, strict=True)]
    assert len(bends) == 3 and (max(bends) > 0.0) == (jump > 0.0)
    half = student(line.num_steps - 2.0) * math.sqrt(line.variance + 1.5 * max(0.0, *bends))
    found = visits.of_corpus()
    assert (found.nats, found.low, found.high) == pytest.approx((line.nats, line.nats - half, line.nats + half))


def test_the_points_of_student() -> None:
    for freedom, point in ((4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (1e9, 1.960)):
        assert student(freedom) == pytest.approx(point, abs=4e-3)


@given(st.lists(st.integers(0, 3 * MOST_REPORTS), max_size=6))
@settings(max_examples=30, deadline=None)
def test_the_latest_reports_are_kept_in_their_order(sizes: list[int]) -> None:
    rows = np.zeros(sum(sizes), dtype=REPORT_ROW)
    rows["step"] = np.arange(len(rows))
    latest = LatestReports.of()
    for part in np.split(rows, np.cumsum(sizes)[:-1]):
        latest.add(part)
    assert latest.rows.tobytes() == rows[-MOST_REPORTS:].tobytes()
    assert latest.copy().rows.tobytes() == latest.rows.tobytes()


def test_later_visits_tell_nothing_and_are_kept_apart() -> None:
    state = initial_state([20], global_batch_size=2, injection_ratio="1")
    plans = planned(state, 10)
    for plan in plans[:10]:
        fold(state, report_of(plan.step, plan.rows["sample_id"], loss=1.5, base_loss=1.0))
    before = state.forgetting()
    assert before.nats == pytest.approx(0.5)
    assert (plans[10].rows["times_drawn"] == 2).all()
    fold(state, report_of(10, plans[10].rows["sample_id"], loss=9.0, base_loss=1.0))
    assert state.forgetting().nats == pytest.approx(0.5)
    assert [len(each.rows) for each in state.latest] == [20, 2]


def test_with_rows_held_back_first_visits_go_on() -> None:
    state = initial_state([128], global_batch_size=8, injection_ratio="1", held_back=0.25)
    num_first = []
    for plan in planned(state, 400):
        fold(state, report_of(plan.step, np.unique(plan.rows["sample_id"])))
        num_first.append(int((plan.rows["times_drawn"] == 1).sum()))
        assert (plan.rows["probability"] <= 1 / 128).all()
    assert sum(num_first) == 128
    assert sum(num_first[:12]) == 96
    assert sum(num_first[12:100]) > 15


def test_where_no_first_visits_are_left_the_controller_decides_by_later_ones() -> None:
    budget = ForgettingBudget(first_ratio="0.2")
    state = initial_state([40], injection_ratio="auto", half_life_steps=10.0, global_batch_size=8, budget=budget)
    for plan in planned(state, 119):
        if len(plan.rows):
            fold(state, report_of(plan.step, np.unique(plan.rows["sample_id"]), loss=2.0, base_loss=1.0))
    state.ratios = (RatioSince(0, Fraction(1, 10)),)
    assert (state.cursors.epoch > 0).all()
    assert nothing_said(state.forgetting(), "first visits")
    assert state.all_visits().of_corpus().nats == pytest.approx(1.0)
    adjusted = adjustment_due(state)
    assert adjusted is not None
    assert exact_ratio(adjusted.injection_ratio) > Fraction(1, 10)
    assert "by first and later visits: +1.0000 nats" in adjusted.reason


def test_a_change_of_policy_restarts_the_window_of_the_controller() -> None:
    state = initial_state([100], injection_ratio="auto")
    planned(state, 9)
    for changes, steady_since in (({"budget": {"nats": 9.0}}, 0), ({"sharpness": 2.0}, 10)):
        fold(state, Configured(9, state.config.changed(**changes)))
        assert state.steady_since == steady_since


def named(name: str) -> World:
    return next(world for world in WORLDS if world.name == name)


def test_the_intervals_hold_the_truth() -> None:
    """A selection; the whole is marked slow, and stands in docs/forgetting.md."""
    whole, domains = Coverage(), Coverage()
    for name in FAST:
        for total, part in zip((whole, domains), coverage(named(name), range(500, 508)), strict=True):
            total.num_held, total.num_told = total.num_held + part.num_held, total.num_told + part.num_told
            total.num_asked += part.num_asked
    assert whole.num_told == whole.num_asked
    assert whole.share > 0.88
    assert domains.share > 0.88


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_in_every_kind_of_world_the_intervals_hold_the_truth(world: World) -> None:
    whole, domains = coverage(world, range(1000, 1200))
    for found in (whole, domains):
        if found.num_told and not world.exception:
            assert 0.9 <= found.share <= 0.985
    assert whole.share > 0.85


def test_a_simulated_run_is_a_fold_of_its_journal() -> None:
    """Fenced: plans know exactly what they may, and the ring with them."""
    from replay_service.sampling.state_bytes import from_bytes, to_bytes
    from tests.sampling.forgetting_worlds import simulate

    states = [[to_bytes(check.state) for check in simulate(named("fenced"), 3)] for _ in range(2)]
    assert states[0] == states[1]
    last = from_bytes(states[0][-1])
    assert to_bytes(last) == states[0][-1]
    assert image(from_bytes(to_bytes(last))) == image(last)
    assert last.forgetting().nats is not None
