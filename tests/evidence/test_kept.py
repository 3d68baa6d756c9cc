"""The tables of a sequence, from raw results that are known."""

from collections.abc import Iterator

import pytest

from tests.evidence.chains import Row, spread
from tests.evidence.kept import kept_by_arm, tables, targets_of

TARGETS = ("stories", "poems")


def raw(
    arm: str, seed: int, stage: int, risen: dict[str, tuple[float, float]], lost: dict[str, float]
) -> Iterator[Row]:
    """Rows of 10 tokens a half: by how many nats a token each half of a domain has risen, and the losses of targets."""
    shared = {"arm": arm, "seed": seed, "stage": stage, "num_tokens": 10}
    for text, halves in risen.items():
        for half, rise in enumerate(halves):
            yield {
                **shared, "kind": "pretraining", "text": text, "half": half, "base_nats": 20.0, "nats": 20.0 + 10 * rise
            }  # fmt: skip
    for text, loss in lost.items():
        for half in (0, 1):
            yield {**shared, "kind": "target", "text": text, "half": half, "base_nats": 30.0, "nats": 10 * loss}


def a_chain(seed: int, more: float) -> list[Row]:
    first = raw("plain", seed, 1, {"law": (0.1, 0.3), "news": (0.5, 0.7)}, {"stories": 1.0, "poems": 2.5})
    last = {"law": (0.4 + more, 0.4 + more), "news": (0.8 + more, 1.2 + more)}
    return [*first, *raw("plain", seed, 2, last, {"stories": 1.5 + more, "poems": 2.0})]


def test_forgetting_is_a_mean_over_domains_and_the_worst_one_is_read_off_the_other_half() -> None:
    (kept,) = kept_by_arm(a_chain(0, 0.0), TARGETS)["plain"]
    assert kept.forgetting == pytest.approx([0.4, 0.7])
    assert kept.worst == pytest.approx([0.6, 1.0])
    assert kept.losses == [[pytest.approx(1.0), pytest.approx(1.5)], [pytest.approx(2.5), pytest.approx(2.0)]]
    assert kept.base == [3.0, 3.0]


def test_the_tables_say_the_mean_and_the_extremes_of_the_seeds() -> None:
    corpus, targets = tables([*a_chain(0, 0.0), *a_chain(1, 0.1)], TARGETS).split("\n\n")[1::2]
    cells = ["0.400 (0.400 to 0.400)", "0.750 (0.700 to 0.800)", "0.600 (0.600 to 0.600)", "1.050 (1.000 to 1.100)"]
    assert corpus.splitlines()[2] == f"| plain | 2 | {' | '.join(cells)} |"
    assert targets.splitlines()[2:] == [
        "| first model | 3.000 | 3.000 | 3.000 |",
        "| plain | 1.000 (1.000 to 1.000) | 1.550 (1.500 to 1.600) | 2.000 (2.000 to 2.000) |",
    ]


def test_a_chain_that_is_not_finished_is_left_out() -> None:
    unfinished = [each for each in a_chain(1, 0.1) if each["stage"] == 1]
    assert len(kept_by_arm([*a_chain(0, 0.0), *unfinished], TARGETS)["plain"]) == 1
    assert tables(unfinished, TARGETS) == "No chain is finished yet."


def test_the_targets_are_those_of_the_stages_in_order() -> None:
    rows = [{"stage": 2, "target": "poems"}, {"stage": 1, "target": "stories"}, {"stage": 2, "target": "poems"}]
    assert targets_of(rows) == ["stories", "poems"]


def test_a_spread_is_scaled_and_rounded() -> None:
    assert spread([0.5, 0.75], 1, scale=100) == "62.5 (50.0 to 75.0)"
    assert spread([-0.0001, 0.0001], 3) == "0.000 (0.000 to 0.000)"
