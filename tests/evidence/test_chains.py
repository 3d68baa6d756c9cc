"""Chains of stages, whatever trains them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evidence.chains import Chain, Row, follow, whole_chains

TARGETS = ("first", "second", "third")


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    start = tmp_path / "base" / "model"
    start.mkdir(parents=True)
    (start / "weights").write_text("base")
    return Chain("an arm", 1, tmp_path / "chain", start, TARGETS)


def train(chain: Chain, stage: int) -> Iterator[Row]:
    """A model is the list of what it has been trained on."""
    before = (chain.model_before(stage) / "weights").read_text()
    chain.model_after(stage).mkdir(parents=True)
    (chain.model_after(stage) / "weights").write_text(f"{before} {chain.targets[stage]}")
    yield {"learned": f"{before} {chain.targets[stage]}"}


def test_a_stage_trains_what_the_stage_before_has_left(chain: Chain) -> None:
    told: list[str] = []
    rows = follow([chain], train, told.append)
    assert [each["learned"] for each in rows] == ["base first", "base first second", "base first second third"]
    assert [(each["arm"], each["seed"], each["stage"], each["target"]) for each in rows] == [
        ("an arm", 1, 1, "first"),
        ("an arm", 1, 2, "second"),
        ("an arm", 1, 3, "third"),
    ]
    assert [each.partition(" ")[0] for each in told] == ["1/3", "2/3", "3/3"]


def test_only_the_model_that_the_next_stage_needs_is_kept(chain: Chain) -> None:
    there: list[list[str]] = []
    follow([chain], train, lambda _: there.append(sorted(each.parent.name for each in chain.folder.glob("*/model"))))
    assert there == [["1-first"], ["2-second"], []]
    assert (chain.start / "weights").read_text() == "base"


def test_finished_stages_are_not_repeated_and_a_killed_one_begins_with_the_same_model(chain: Chain) -> None:
    begun: list[int] = []

    def killed_in_the_second(chain: Chain, stage: int) -> list[Row]:
        begun.append(stage)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return list(train(chain, stage))

    with pytest.raises(KeyboardInterrupt):
        follow([chain], killed_in_the_second, print)
    rows = follow([chain], killed_in_the_second, print)
    assert begun == [0, 1, 1, 2]
    assert rows[-1]["learned"] == "base first second third"
    assert follow([chain], killed_in_the_second, print) == rows
    assert begun == [0, 1, 1, 2]
    assert whole_chains(rows, 3) == rows and whole_chains(rows[:2], 3) == []
