"""Windows: how many steps one request for batches asks for, when the client chooses.

The next window is fetched while one is trained on, so a plan is made up to two windows before it is used. A long window
costs few requests and bridges pauses of the service; a short one acts on fresher reports, sooner takes up a change of
the run, and holds less in memory.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

from replay_service.sampling.injection import exact_ratio
from replay_service.wire.batches import Batch

Auto = Literal["auto"]

LEAST_STEPS: Final = 4
"""So that a pause of the service of a few steps goes unnoticed."""
MOST_STEPS: Final = 64
"""So that a change of the run takes effect within 128 steps."""
USEFUL_ROWS: Final = 64
"""With so many rows of the rank, fresh reports are worth more than a request less: either costs little beside steps."""
MOST_BYTES: Final = 16 << 20
"""What a window may hold in memory, of which there are two."""
_SHARE_OF_HORIZON: Final = Fraction(1, 32)
"""Two windows are a sixteenth of a half life: what a plan does not know yet of a stratum's damage weighs 4 %."""


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How many steps a window has, from what is fixed for a run and from what the last window told.

    It grows to the rows that make a request worth while, from `LEAST_STEPS` to `MOST_STEPS`. Nothing makes it longer
    than a 32nd of the half life of reports, or of the job if that is shorter, but for this: a rank that rehearses less
    than a row in so many steps asks for as many as hold one on average. Its plans then miss about two of its own
    reports, and requests do not come back empty time after time. And nothing makes it hold more than `MOST_BYTES`,
    unless a single step does; after the injection ratio was raised, one or two windows may.

    A window never waits for its own reports. The plan of step t of a fenced run needs the reports of the steps up to
    t - lag; who waits for a window that begins at step a has reported all before a. So `lag` steps never deadlock, and
    of windows of lag / 2 the next one can be planned when the one before begins: its last step waits for reports of
    steps before that. That is the most asked for.

    Attributes:
        global_batch_size: sequences in one step of the whole job.
        world_size: ranks that share them.
        horizon_steps: the half life of the run's reports when the job began, or the job's length if that is less.
        most_steps: what the service and the run's fence allow.
    """

    global_batch_size: int
    world_size: int
    horizon_steps: float
    most_steps: int

    @classmethod
    def of_run(cls, run: dict[str, Any], world_size: int, job_steps: int | None) -> "WindowRule":
        """The rule for a run as `ReplayClient.run` describes it, and a job of so many steps, or of nobody knows."""
        config, most_steps = run["config"], run["max_window_steps"]
        if config["feedback"]["mode"] == "fenced":
            most_steps = min(most_steps, max(1, config["feedback"]["lag"] // 2))
        horizon_steps = min(config["half_life_steps"], math.inf if job_steps is None else job_steps)
        return cls(config["global_batch_size"], world_size, horizon_steps, most_steps)

    def steps_after(self, window: Batch) -> int:
        """How many steps the window after this one has."""
        return self.num_steps(exact_ratio(window.header.injection_ratio), _row_bytes(window))

    def num_steps(self, ratio: Fraction, row_bytes: int) -> int:
        """How many steps a window has when `ratio` of the sequences are rehearsal and a row takes `row_bytes`."""
        rows_a_step = float(ratio * self.global_batch_size / self.world_size)
        per_row = math.inf if rows_a_step == 0 else 1 / rows_a_step
        bounds = (
            max(LEAST_STEPS, USEFUL_ROWS * per_row),
            max(self.horizon_steps * _SHARE_OF_HORIZON, per_row),
            MOST_BYTES / row_bytes * per_row,
            MOST_STEPS,
            self.most_steps,
        )
        return max(1, int(min(bounds)))


def _row_bytes(window: Batch) -> int:
    """What a sample takes in memory, in a window that may hold none."""
    return sum(math.prod(array.shape[1:]) * array.dtype.itemsize for array in window.columns().values())
