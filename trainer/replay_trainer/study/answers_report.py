"""What a study reports of multiple-choice questions: tables of arms and of tasks, and a Parquet file.

Shapes: A arms, P pairs of a target and a seed, T targets, B resamples.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from replay_trainer.study.answers import Answers
from replay_trainer.study.bootstrap import NUM_RESAMPLES, Interval, by_target, has_intervals, interval, resamples
from replay_trainer.study.outcomes import Outcome, Paired

_HEAD = ("arm", "right before", "right", "change", "flips", "gains")


@dataclass(frozen=True, slots=True)
class ArmAnswers:
    """Shares of the questions, mean over targets, of one arm."""

    arm: str
    before: float
    right: Interval
    change: Interval
    flips: Interval
    gains: Interval


def answers_of_arms(paired: Paired, task: str | None = None) -> list[ArmAnswers]:
    """All arms, if they were asked; the intervals are over seeds, and not over other questions."""
    weights = resamples(paired.target_of_pair, NUM_RESAMPLES)
    known = has_intervals(paired.target_of_pair)
    found = []
    for arm, outcomes in zip(paired.arms, paired.outcomes, strict=True):
        if any(each.answers is None for each in outcomes):
            continue
        shares = np.array([each.answers.shares(task) for each in outcomes if each.answers is not None])
        means = by_target(weights, paired.target_of_pair, shares).mean(axis=1)
        right, change, flips, gains = (
            interval(values, known=known)
            for values in (means[:, 1], means[:, 1] - means[:, 0], means[:, 2], means[:, 3])
        )
        found.append(ArmAnswers(arm, float(means[0, 0]), right, change, flips, gains))
    return found


def table_of_arms(paired: Paired) -> tuple[tuple[str, ...], list[list[str]]]:
    """Head and rows of the table of all questions; no rows where no arm was asked any."""
    rows = [
        [
            each.arm,
            f"{each.before:.1%}",
            _share(each.right),
            _share(each.change, "+"),
            _share(each.flips),
            _share(each.gains),
        ]
        for each in answers_of_arms(paired)
    ]
    return _HEAD, rows


def table_of_tasks(paired: Paired) -> tuple[tuple[str, ...], list[list[str]]]:
    """Head and rows of the table of what changed in each task, arms beside one another."""
    first = paired.outcomes[0][0].answers
    if first is None:
        return ("task",), []
    arms = {task: answers_of_arms(paired, task) for task in first.tasks}
    head = ("task", "questions", "right before", *(each.arm for each in arms[first.tasks[0]]))
    rows = [
        [task, str(num), f"{arms[task][0].before:.1%}", *(f"{each.change.value:+.1%}" for each in arms[task])]
        for task, num in zip(first.tasks, first.num_questions, strict=True)
    ]
    return head, rows


def _share(found: Interval, sign: str = "") -> str:
    form = f"{{:{sign}.1%}}"
    ends = f" ({form.format(found.low)} to {form.format(found.high)})" if found.is_known else ""
    return form.format(found.value) + ends


SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("target", pa.string()),
        ("seed", pa.int64()),
        ("task", pa.string()),
        ("num_questions", pa.int64()),
        ("num_base_right", pa.int64()),
        ("num_flips", pa.int64()),
        ("num_gains", pa.int64()),
    ]
)


def write_answers(path: Path, outcomes: Iterable[Outcome]) -> None:
    """One row for each outcome and task; no file where no questions were asked."""
    rows = [row for each in outcomes if each.answers is not None for row in _rows(each, each.answers)]
    if rows:
        part = path.with_name(f"{path.name}.part")
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part)
        part.replace(path)


def _rows(outcome: Outcome, answers: Answers) -> Iterator[dict[str, object]]:
    shared = {"arm": outcome.arm, "target": outcome.target, "seed": outcome.seed}
    for place, task in enumerate(answers.tasks):
        counts = {name: getattr(answers, name)[place] for name in SCHEMA.names[-4:]}
        yield {**shared, "task": task, **counts}
