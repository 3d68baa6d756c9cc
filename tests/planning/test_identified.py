import pytest

from replay_service.errors import UnusableRuns
from replay_service.planning.identified import Levels, forgetting_runs, remarks, target_runs
from replay_service.planning.runs import Runs
from tests.planning.worlds import World

ONE = {"sizes": (4e6,), "lengths": (2e6,)}


def in_proportion(ratios: tuple[float, ...], times: int = 2) -> Runs:
    """Larger models trained longer."""
    runs = World().runs(sizes=(1e6, 4e6, 1.6e7), lengths=(1e5, 4e5, 1.6e6), ratios=ratios, times=times)
    return runs.take(runs.target_tokens * 10 == runs.num_parameters)


def test_all_coefficients_are_free_where_all_variables_vary() -> None:
    law = forgetting_runs(World().runs())
    assert law.free == (True,) * 4
    assert remarks(law) == []


def test_one_ratio_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnusableRuns, match=r"same weighted injection ratio, 0\.05\d*, .* add runs at a second ratio"):
        forgetting_runs(World().runs(ratios=(0.05, 0.0505)))


def test_too_few_runs_are_refused_with_their_number() -> None:
    with pytest.raises(UnusableRuns, match=r"5 runs are too few for the 4 coefficients .* give at least 6"):
        forgetting_runs(World().runs().take([0, 4, 16, 22, 44]))  # type: ignore[arg-type]


def test_too_few_runs_for_the_target_loss_leave_it_out() -> None:
    runs = World().runs().take([0, 4, 16, 22, 44, 30])  # type: ignore[arg-type]
    assert forgetting_runs(runs).free == (True,) * 4
    assert target_runs(runs) is None


@pytest.mark.parametrize(
    ("runs", "free", "said"),
    [
        (World().runs(**ONE, times=2), (True, True, True, False), ("one model size", "ratios alone", "one length")),
        (
            World().runs(**ONE, ratios=(0.0, 0.05), times=2),
            (True, True, False, False),
            ("one model size", "alpha and B cannot be told apart", "one length"),
        ),
        (World().runs(lengths=(2e6,)), (True, True, True, False), ("one length",)),
        (World().runs(sizes=(4e6,)), (True, True, True, True), ("one model size", "ratios alone")),
        (in_proportion((0.0, 0.05)), (True, True, True, False), ("trained longer in proportion",)),
        (in_proportion((0.0, 0.01, 0.05)), (True, True, True, True), ()),
        (World().runs(ratios=(0.01, 0.05)), (True, True, True, True), ("No run is without rehearsal",)),
    ],
)
def test_what_cannot_be_told_is_said(runs: Runs, free: tuple[bool, ...], said: tuple[str, ...]) -> None:
    law = forgetting_runs(runs)
    assert law.free == free
    found = remarks(law)
    assert len(found) == len(said) and all(part in each for part, each in zip(said, found, strict=True))


def test_lengths_that_rehearsed_rows_shorten_are_one_length() -> None:
    runs = World().runs(**ONE, ratios=(0.0, 0.2), times=3)
    runs.target_tokens[:] *= 1 - runs.injection_ratio
    assert Levels.of(runs).num_lengths == 1
