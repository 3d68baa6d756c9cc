"""Fine-tuning runs as arrays, checked.

Shapes: R runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import UnusableRuns

Float64Array = NDArray[np.float64]

REQUIRED: Final = ("num_parameters", "target_tokens", "injection_ratio", "base_loss", "pretraining_loss")
OPTIONAL: Final = ("rehearsal_weight", "target_loss")
_MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Runs:
    """Finished fine-tuning runs of one target.

    Attributes:
        num_parameters: N, float64 [R].
        target_tokens: D_ft, unique tokens of the fine-tuning set that were trained on, float64 [R].
        injection_ratio: p, the share of rehearsed rows among all rows, float64 [R].
        rehearsal_weight: of a rehearsed row in the loss, float64 [R].
        base_loss: on held-out pretraining text before fine-tuning, nats per token, float64 [R].
        pretraining_loss: on the same text afterwards, nats per token, float64 [R].
        target_loss: on held-out text of the target afterwards, nats per token, float64 [R]; None if not measured.
    """

    num_parameters: Float64Array
    target_tokens: Float64Array
    injection_ratio: Float64Array
    rehearsal_weight: Float64Array
    base_loss: Float64Array
    pretraining_loss: Float64Array
    target_loss: Float64Array | None = None

    @classmethod
    def of(cls, columns: Mapping[str, Float64Array]) -> "Runs":
        """Check columns of equal length, and take them as runs.

        Raises:
            UnusableRuns: names the rows that cannot be used, and what to do about them.
        """
        if missing := [name for name in REQUIRED if name not in columns]:
            raise UnusableRuns(
                f"the runs have no column {', '.join(missing)}; each row needs {', '.join(REQUIRED)}, and may have "
                f"{' and '.join(OPTIONAL)}"
            )
        taken = {name: columns[name] for name in (*REQUIRED, *OPTIONAL) if name in columns}
        taken.setdefault("rehearsal_weight", np.ones(len(columns["num_parameters"])))
        runs = cls(**taken)
        _check(runs)
        return runs

    def __len__(self) -> int:
        return len(self.num_parameters)

    @property
    def forgetting(self) -> Float64Array:
        """Nats per token, [R]."""
        return self.pretraining_loss - self.base_loss

    @property
    def weighted_ratio(self) -> Float64Array:
        """Rehearsal weight times injection ratio, [R]: the variable of the laws. At weight 1 it is the ratio."""
        return self.rehearsal_weight * self.injection_ratio

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> "Runs":
        """Some of the runs, in the order of the index; a run may be taken twice."""
        columns = ((each.name, getattr(self, each.name)) for each in fields(self))
        taken: dict[str, Any] = {name: None if values is None else values[index] for name, values in columns}
        return Runs(**taken)


def _check(runs: Runs) -> None:
    for name in (*REQUIRED, *OPTIONAL):
        values = getattr(runs, name)
        if values is None:
            continue
        _refuse(~np.isfinite(values), f"{name} is missing or not finite", "measure it, or leave those rows out")
        if name == "injection_ratio":
            _refuse((values < 0) | (values >= 1), f"{name} is not in [0, 1)", "write 5 % as 0.05")
        else:
            _refuse(values <= 0, f"{name} is not above 0", "correct it, or leave those rows out")
    _refuse(
        runs.forgetting <= 0,
        "pretraining_loss is not above base_loss, so nothing was forgotten",
        "the law is of forgetting above 0: measure on more held-out text, or leave those rows out",
    )


def _refuse(wrong: NDArray[np.bool_], reason: str, remedy: str) -> None:
    rows = (wrong.nonzero()[0] + 1).tolist()
    if rows:
        named = ", ".join(map(str, rows[:_MOST_NAMED])) + (", ..." if len(rows) > _MOST_NAMED else "")
        raise UnusableRuns(f"{reason} in {len(rows)} of {len(wrong)} runs (run {named}); {remedy}")


def num_levels(values: Float64Array, factor: float) -> int:
    """How many values differ by more than a factor from the next smaller one. Zero is a level of its own."""
    positive = np.unique(values[values > 0])
    gaps = np.diff(np.log(positive)) > np.log(factor)
    return int(np.any(values == 0)) + (1 + int(np.sum(gaps)) if len(positive) else 0)
