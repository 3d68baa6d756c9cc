"""Counts of right and wrong answers, and what a report says of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from replay_trainer.study.answers import Answers
from replay_trainer.study.answers_report import table_of_arms, table_of_tasks, write_answers
from replay_trainer.study.outcomes import Outcome, Paired
from tests.trainer.study.test_outcomes import outcome

BEFORE = np.array([1, 1, 0, 0, 1], dtype=bool)


def answers(*after: int) -> Answers:
    return Answers.counted(["a", "a", "a", "b", "b"], BEFORE, np.array(after, dtype=bool))


def outcomes() -> list[Outcome]:
    found = {("none", 0): (0, 0, 0, 0, 0), ("none", 1): (0, 1, 0, 0, 0)}
    found |= {("kept", 0): (1, 1, 0, 0, 1), ("kept", 1): (1, 1, 1, 0, 1)}
    return [
        replace(outcome(arm, "stories", seed, 0.1), answers=answers(*after)) for (arm, seed), after in found.items()
    ]


def test_flips_and_gains_are_counted_by_task() -> None:
    found = answers(0, 1, 1, 1, 1)
    assert (found.tasks, found.num_questions) == (("a", "b"), (3, 2))
    assert (found.num_base_right, found.num_flips, found.num_gains) == ((2, 1), (1, 0), (1, 1))
    assert found.shares() == pytest.approx([3 / 5, 4 / 5, 1 / 5, 2 / 5])
    assert found.shares("b") == pytest.approx([1 / 2, 1, 0, 1 / 2])


def test_the_tables_are_means_over_seeds_with_intervals() -> None:
    paired = Paired.of(outcomes(), ["none", "kept"], ["stories"])
    assert paired is not None
    head, (none, kept) = table_of_arms(paired)
    assert head == ("arm", "right before", "right", "change", "flips", "gains")
    assert none[:2] == ["none", "60.0%"] and none[2].startswith("10.0% (") and none[3].startswith("-50.0% (")
    assert kept[4:] == ["0.0% (0.0% to 0.0%)", kept[5]] and kept[5].startswith("10.0% (")
    head, tasks = table_of_tasks(paired)
    assert head == ("task", "questions", "right before", "none", "kept")
    assert tasks == [["a", "3", "66.7%", "-50.0%", "+16.7%"], ["b", "2", "50.0%", "-50.0%", "+0.0%"]]


def test_without_questions_there_is_nothing_to_report(tmp_path: Path) -> None:
    paired = Paired.of([outcome("none", "stories", 0, 0.1)], ["none"], ["stories"])
    assert paired is not None
    assert not table_of_arms(paired)[1] and not table_of_tasks(paired)[1]
    write_answers(tmp_path / "answers.parquet", [outcome("none", "stories", 0, 0.1)])
    assert not any(tmp_path.iterdir())


def test_answers_go_into_a_table_of_their_own(tmp_path: Path) -> None:
    write_answers(tmp_path / "answers.parquet", outcomes())
    rows = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert len(rows) == 4 * 2
    assert rows[1] == {
        "arm": "none",
        "target": "stories",
        "seed": 0,
        "task": "b",
        "num_questions": 2,
        "num_base_right": 1,
        "num_flips": 1,
        "num_gains": 0,
    }
