"""One line for a person who watches a training."""

from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final

from rich.console import Console

from replay_service.progress import duration, progress_bar, seconds_left

_PLAIN_LINES: Final = 20
"""About how many there are in a log file, whatever the number of steps."""
_RECENT: Final = 20
"""Steps that the shares of waiting and of rehearsal are of."""


class ProgressLine:
    """Step, losses, forgetting, shares of rehearsal and of waiting for data, rows without a finite loss, time left.

    In a terminal it is one line that changes; elsewhere a line each twentieth of the steps. A context manager.

    Args:
        console: where to.
        title: what stands first.
        num_steps: of the whole job.
        clock: seconds from any beginning, such as `time.monotonic`.
        first_step: where the job goes on from.
    """

    def __init__(
        self, console: Console, title: str, num_steps: int, clock: Callable[[], float], *, first_step: int = 0
    ) -> None:
        self._console, self._title, self._num_steps, self._clock = console, title, num_steps, clock
        self._first_step, self._began = first_step, clock()
        self._recent: deque[tuple[float, float, float, float]] = deque(maxlen=_RECENT)
        self._num_nonfinite = self._num_skipped = 0
        self._bar = progress_bar(console) if console.is_terminal else None
        self._task = (
            None if self._bar is None else self._bar.add_task(title, total=num_steps, completed=first_step, note="")
        )

    def show(self, step: int, values: Mapping[str, float | None]) -> None:
        """After a step, with what was measured in it.

        Args:
            step: counted from 0.
            values: by name, None or missing where not measured; other names are left alone. `loss`, `target_loss` and
                `forgetting` in nats per token, `num_rehearsed` out of `num_rows`, `waited_s` for data out of `step_s`;
                `num_nonfinite_rows` and `was_skipped` add up over the steps.
        """
        self._num_nonfinite += int(values.get("num_nonfinite_rows") or 0)
        self._num_skipped += bool(values.get("was_skipped"))
        parts = ("waited_s", "step_s", "num_rehearsed", "num_rows")
        waited_s, step_s, num_rehearsed, num_rows = (values.get(name) or 0.0 for name in parts)
        self._recent.append((waited_s, step_s, num_rehearsed, num_rows))
        note = "  ".join([f"step {step + 1:,}/{self._num_steps:,}", *self._figures(values), *self._left(step)])
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step + 1, note=note)
        elif self._is_due(step):
            self._console.print(f"{self._title}  {note}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "ProgressLine":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _figures(self, values: Mapping[str, float | None]) -> list[str]:
        waited_s, step_s, num_rehearsed, num_rows = (sum(column) for column in zip(*self._recent, strict=True))
        shown = {
            "loss {:.3f}": values.get("loss"),
            "target {:.3f}": values.get("target_loss"),
            "forgetting {:+.3f}": values.get("forgetting"),
            "rehearsal {:.1%}": num_rehearsed / num_rows if num_rows > 0 else None,
            "waiting {:.0%}": waited_s / step_s if step_s > 0 else None,
            "rows whose loss is not finite: {:,}": self._num_nonfinite or None,
            "steps skipped for it: {:,}": self._num_skipped or None,
        }
        return [form.format(value) for form, value in shown.items() if value is not None]

    def _left(self, step: int) -> list[str]:
        done, whole = step + 1 - self._first_step, self._num_steps - self._first_step
        left_s = seconds_left(self._clock() - self._began, done / whole, 1 - done / whole)
        return [] if left_s is None else [f"about {duration(left_s)} left"]

    def _is_due(self, step: int) -> bool:
        every = max(1, self._num_steps // _PLAIN_LINES)
        return (step + 1) % every == 0 or step in (self._first_step, self._num_steps - 1)
