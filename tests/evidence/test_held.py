import numpy as np
import pytest

from tests.evidence.held import Pair, by_domain, held, summary
from tests.evidence.tracked import Point


def pair(run: str, low: float, high: float, truth: float, error: float = 0.0) -> Pair:
    return Pair(run, (low + high) / 2, low, high, truth, error)


def test_intervals_are_counted_by_run() -> None:
    unknown = Pair("a", None, None, None, 0.1, 0.0)
    found = held([pair("a", 0, 1, 0.5), pair("b", 0, 1, 0.5), pair("b", 0, 1, 2.0), unknown])
    assert found is not None
    assert (found.num, found.share, found.least, found.most) == (3, 2 / 3, 0.5, 1.0)
    assert found.bias == pytest.approx(-0.5)
    assert (found.half_width, found.share_unknown) == (0.5, 0.25)
    assert held([unknown]) is None


def test_an_error_of_the_truth_lowers_what_is_counted_by_little() -> None:
    """With a truth that is measured with 20 % of the interval's error, 95 % intervals hold it at about 94.4 %."""
    random = np.random.default_rng(0)
    estimates, truths = random.standard_normal(20_000), 0.2 * random.standard_normal(20_000)
    pairs = [
        pair("a", each - 1.96, each + 1.96, truth, 0.2)
        for each, truth in zip(estimates.tolist(), truths.tolist(), strict=True)
    ]
    found = held(pairs)
    assert found is not None
    assert found.share == pytest.approx(0.9446, abs=0.005)
    assert found.truth_error == pytest.approx(0.2 / 1.96)


def test_tables_have_the_corpus_and_every_domain() -> None:
    def estimate(low: float | None) -> dict[str, float | None]:
        return {"nats": low, "low": low, "high": None if low is None else low + 1}

    true = {"nats": 0.5, "standard_error": 0.1}
    estimates = {"de": estimate(0.0), "en": estimate(None)}
    truths = {"heldout": {"de": true, "en": true}}
    point = Point("a", 25, 3, estimate(1.0), estimates, {"heldout": true}, truths)
    lines = summary([point]).splitlines()
    assert lines[2] == "| corpus, heldout rows | 0% of 1 | 0% to 0% | +0.500 | 0.500 | 20% | 0% |"
    assert lines[3].startswith("| domains, heldout rows | 100% of 1 |") and lines[3].endswith("| 50% |")
    assert by_domain([point], "heldout").splitlines()[3] == "| en | - | - | - | - | - | 100% |"
