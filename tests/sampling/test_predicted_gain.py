from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from replay_service.sampling.forgetting import FirstVisits, Forgetting, student
from replay_service.sampling.latest import REPORT_ROW
from replay_service.sampling.predicted_gain import ELASTICITY, NUM_BLOCKS, Draws, PredictedGain, predict_gain
from tests.sampling.forgetting_worlds import World, simulate
from tests.sampling.gain_worlds import EVEN, GAIN_WORLDS, SPREAD, compared, prediction_of, spread_of
from tests.sampling.worlds import image, initial_state

Float64Array = NDArray[np.float64]

NUM_STRATA = 64
SIZES = np.full(NUM_STRATA, 100)
SHARE = SIZES / SIZES.sum()


def lognormal(spread: float) -> Float64Array:
    """What strata lose, float64 [64]: lognormal, with nothing left to chance."""
    normal = np.array([NormalDist().inv_cdf((i + 0.5) / NUM_STRATA) for i in range(NUM_STRATA)])
    lost: Float64Array = 0.5 * np.exp(spread * normal)
    return lost


def settled(lost: Float64Array, sharpness: float, elasticity: float = ELASTICITY.value) -> Float64Array:
    """n_k / w_k of draws in proportion to w_k * F_k ** sharpness, after many changes of both."""
    drawn = np.ones_like(lost)
    for _ in range(500):
        wanted = (lost * drawn**-elasticity) ** sharpness
        drawn = np.sqrt(drawn * wanted / (SHARE @ wanted))
    return drawn / (SHARE @ drawn)


def visits_of(lost: Float64Array, drawn: Float64Array, noise: float = 0.0, num: int = 24) -> FirstVisits:
    """Reports of each stratum, `num` on average, 16 a step."""
    random = np.random.default_rng(0)
    stratum = random.choice(NUM_STRATA, num * NUM_STRATA, p=SHARE * drawn)
    reports = np.zeros(len(stratum), dtype=REPORT_ROW)
    reports["step"], reports["stratum"] = np.arange(len(stratum)) // 16, stratum
    reports["chance"] = (SHARE * drawn)[stratum]
    forgotten = lost * drawn**-ELASTICITY.value
    reports["excess_nats"] = forgotten[stratum] + noise * random.standard_normal(len(stratum))
    return FirstVisits(reports, int(reports["step"].max()), SIZES, SHARE * drawn, 4, 200.0, 8.0)


def draws_of(drawn: Float64Array, sharpness: float = 1.0, **changes: Any) -> Draws:
    """From before the first step on."""
    return replace(Draws(SHARE * drawn, np.ones(NUM_STRATA, dtype=bool), sharpness, 0.0, -10_000), **changes)


def predicted(visits: FirstVisits, draws: Draws) -> PredictedGain:
    return predict_gain(visits, visits.of_corpus(), draws)


def uniformly(lost: Float64Array, sharpness: float = 1.0, noise: float = 0.0, num: int = 24) -> PredictedGain:
    drawn = np.ones_like(lost)
    return predicted(visits_of(lost, drawn, noise, num), draws_of(drawn, sharpness))


def relative_variance(weight: Float64Array, ratio: Float64Array, block: np.ndarray, stratum: np.ndarray) -> float:
    """By the products of any two reports of different blocks: of those of one stratum, less what all have."""
    pairs = np.outer(weight, weight) * (block[:, None] != block)
    products = pairs * np.outer(ratio - 1.0, ratio - 1.0)
    within = (products * (stratum[:, None] == stratum) / SHARE[stratum]).sum() - products.sum()
    return float(within / pairs.sum() / (weight @ ratio / weight.sum()) ** 2)


def test_the_spread_and_its_interval_are_those_of_pairs_of_reports_and_of_leaving_out_each_block() -> None:
    visits = visits_of(lognormal(0.5), np.ones(NUM_STRATA), noise=0.3, num=10)
    step, stratum = visits.reports["step"], visits.reports["stratum"]
    weight = 1.0 - (visits.step - step) / (3.0 * visits.half_life)
    weight /= weight.sum()
    ratio, block = visits.reports["excess_nats"] / (weight @ visits.reports["excess_nats"]), step % NUM_BLOCKS
    columns = weight, ratio, block, stratum
    whole = relative_variance(*columns)
    without = [relative_variance(*(each[block != left_out] for each in columns)) for left_out in range(NUM_BLOCKS)]
    squares = sum((each - whole) ** 2 for each in without)
    half = student(NUM_BLOCKS - 1.0) * np.sqrt(squares * (NUM_BLOCKS - 1) / NUM_BLOCKS)
    found = predicted(visits, draws_of(np.ones(NUM_STRATA))).spread
    assert 0.0 < half < whole
    assert found == pytest.approx(np.sqrt(np.log1p([whole, whole - half, whole + half])))


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("spread", [0.2, 0.5])
def test_the_closed_form_is_where_draws_by_damage_settle(spread: float, sharpness: float) -> None:
    lost = lognormal(spread)
    found = uniformly(lost, sharpness)
    assert found.spread is not None and found.mean_reduction is not None and found.rows_saved is not None
    assert found.spread.value == pytest.approx(spread_of(SIZES.astype(np.float64), lost), rel=0.05)
    kept = float(SHARE @ (lost * settled(lost, sharpness) ** -ELASTICITY.value) / (SHARE @ lost))
    assert found.mean_reduction.value == pytest.approx(1 - kept, rel=0.15)
    assert found.rows_saved.value == pytest.approx(1 - kept ** (1 / ELASTICITY.value), rel=0.15)
    apart = np.log(lost * settled(lost, sharpness) ** -ELASTICITY.value)
    assert found.worst_reduction is not None
    assert found.worst_reduction.value == pytest.approx(1 - np.ptp(apart) / np.ptp(np.log(lost)), rel=1e-3)
    for each in (found.spread, found.mean_reduction, found.rows_saved, found.worst_reduction):
        assert each.low <= each.value <= each.high


def test_of_a_run_that_draws_by_damage_it_says_the_same() -> None:
    lost = lognormal(0.5)
    drawn = settled(lost, 1.0)
    visits, draws = visits_of(lost, drawn), draws_of(drawn)
    found, other = predicted(visits, draws), uniformly(lost)
    assert found.spread is not None and other.spread is not None
    assert found.spread.value == pytest.approx(other.spread.value, rel=0.05)
    again = predicted(visits, replace(draws, are_first=np.zeros(NUM_STRATA, dtype=bool)))
    assert again.spread == pytest.approx(found.spread, rel=1e-6)


def test_the_interval_allows_for_draws_that_forgetting_has_not_answered_to() -> None:
    lost = lognormal(0.5)
    drawn = settled(lost, 1.0)
    visits = visits_of(lost, drawn)
    long, just = predicted(visits, draws_of(drawn)), predicted(visits, draws_of(drawn, steady_since=visits.step))
    assert long.spread is not None and just.spread is not None
    assert just.spread.high == long.spread.high
    assert just.spread.low < long.spread.low - 0.05


def test_the_floor_counts_as_a_lower_sharpness() -> None:
    lost, drawn = lognormal(0.5), np.ones(NUM_STRATA)
    visits = visits_of(lost, drawn)
    assert predicted(visits, draws_of(drawn, 1.0, floor=0.25)) == predicted(visits, draws_of(drawn, 0.75))


def test_noise_that_hides_differences_from_the_signal_counts_too() -> None:
    lost, noise = lognormal(0.5), 1.0
    clear, hidden = uniformly(lost), uniformly(lost, noise=noise)
    assert clear.worst_reduction is not None and hidden.worst_reduction is not None
    assert hidden.worst_reduction.value < 0.7 * clear.worst_reduction.value


@pytest.mark.parametrize(
    ("spread", "sharpness", "noise", "advice"),
    [
        (0.0, 1.0, 0.0, "damage is even here: prioritizing gains nothing; raise rehearsal_weight instead"),
        (0.5, 1.0, 0.0, "of the rows and narrows the worst domain's excess over the mean by about 25%"),
        (0.5, 8.0, 0.0, "sharpness 1 costs none"),
        (0.5, 0.0, 0.0, "all draws are uniform"),
        (0.3, 1.0, 1.5, "damage may be even here"),
    ],
)
def test_it_advises(spread: float, sharpness: float, noise: float, advice: str) -> None:
    found = uniformly(lognormal(spread), sharpness, noise)
    assert found.advice is not None and advice in found.advice
    assert found.reason is None
    assert found.is_even == ("damage is even here" in advice)


def nothing_said(found: PredictedGain, because: str) -> bool:
    numbers = (found.spread, found.mean_reduction, found.rows_saved, found.worst_reduction, found.advice)
    return numbers == (None,) * 5 and found.reason is not None and because in found.reason


def test_where_nothing_can_be_said_it_says_why() -> None:
    assert nothing_said(prediction_of(initial_state([10, 10])), "no first visit was reported yet")
    drawn = np.ones(NUM_STRATA)
    whole = visits_of(lognormal(0.3), drawn)
    few = replace(whole, reports=whole.reports[::30])
    assert nothing_said(predicted(few, draws_of(drawn)), "independent ones, and a prediction takes 60")
    assert nothing_said(uniformly(np.full(NUM_STRATA, 0.015), noise=0.3), "so little is forgotten")
    assert nothing_said(uniformly(-lognormal(0.3)), "so little is forgotten")


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_the_scale_of_losses_makes_no_difference(scale: float) -> None:
    usual, other = (uniformly(each * lognormal(0.5)) for each in (1.0, scale))
    assert usual.spread is not None
    assert other.spread == pytest.approx(usual.spread)
    assert other.rows_saved == pytest.approx(usual.rows_saved)


def test_with_the_shortest_half_life_the_window_is_eight_steps() -> None:
    drawn = np.ones(NUM_STRATA)
    visits = replace(visits_of(lognormal(0.3), drawn), half_life=1e-3)
    reports = visits.reports.copy()
    reports["step"] = np.arange(len(reports)) // 32
    visits = replace(visits, reports=reports, step=int(reports["step"].max()))
    found = predicted(visits, draws_of(drawn))
    assert found.spread is not None
    assert 60 < found.num_effective < 8 * 32


def test_strata_without_rows_or_draws_do_no_harm() -> None:
    lost, drawn = lognormal(0.4), np.ones(NUM_STRATA)
    whole = visits_of(lost, drawn)
    sizes = SIZES.copy()
    sizes[0], reports = 0, whole.reports[whole.reports["stratum"] != 0]
    unseen = replace(whole, sizes=sizes, reports=reports[reports["stratum"] != 1])
    probabilities = np.where(np.arange(NUM_STRATA) == 0, 0.0, SHARE)
    found = predicted(unseen, draws_of(drawn, probabilities=probabilities))
    assert found.spread is not None
    assert found.spread.value == pytest.approx(0.4, abs=0.1)


def test_it_is_told_by_the_state_and_changes_nothing_in_it() -> None:
    state = next(simulate(SPREAD, 0)).state
    before = image(state)
    assert prediction_of(state).advice is not None
    assert image(state) == before


def test_in_simulated_runs_it_holds_what_it_says() -> None:
    """A selection; the whole is marked slow, and stands in docs/forgetting.md."""
    even, spread = compared(EVEN, range(500, 504)), compared(SPREAD, range(500, 506))
    for each in (even, spread):
        assert len(each.held) == each.num_asked
        assert np.mean(each.held) > 0.7
    assert all("gains nothing" in advice for advice in even.advice)
    assert all("drawing by damage saves" in advice for advice in spread.advice)
    for pairs in (spread.means, spread.worsts):
        assert spread.agree(pairs) > 0.8
        said, simulated = np.mean(pairs, axis=0)
        assert 0.6 < said / simulated < 1.6


@pytest.mark.slow
@pytest.mark.parametrize("world", GAIN_WORLDS, ids=lambda world: world.name)
def test_in_every_kind_of_world_it_holds_what_it_says(world: World) -> None:
    found = compared(world, range(1000, 1200))
    is_even = max(truth for truth, _, _ in found.spreads) < 1e-6
    # Of 400 strata with five reports each, draws follow the noise of the reports that tell of the spread.
    assert np.mean(found.held) >= (0.6 if is_even and world.num_domains == 50 else 0.9)
    if not is_even:
        assert found.agree(found.means) >= 0.9
        said, simulated = np.mean(found.means, axis=0)
        assert abs(said - simulated) < 0.005 + 0.35 * abs(simulated)


def test_the_estimate_of_forgetting_comes_first() -> None:
    drawn = np.ones(NUM_STRATA)
    unknown = Forgetting(None, None, None, 3.0, 0.5, 9, 8, "of a reason")
    found = predict_gain(visits_of(lognormal(0.3), drawn), unknown, draws_of(drawn))
    assert nothing_said(found, "forgetting is not known: of a reason")
    assert found.num_effective == 3.0
