"""One line for a person who watches a training."""

from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple

from rich.console import Console

from replay_service.progress import TITLE_WIDTH, duration, progress_bar, seconds_left

_PLAIN_LINES: Final = 20
"""About how many there are in a log file, whatever the number of steps."""
_RECENT: Final = 20
"""Steps that the shares of waiting and of rehearsal are of."""


_BAR_WIDTH: Final = 8
_AROUND_BAR: Final = len("* ") + len(" ") + len(" 0:00:00 ")
"""Columns of a terminal's line beside its title, its bar and its figures."""
_GAP: Final = "  "


class _Figure(NamedTuple):
    """A part of a line, or its form, and its rank: the greater, the sooner it is left out."""

    text: str
    rank: int


class ProgressLine:
    """Step, losses, forgetting, shares of rehearsal and of waiting for data, rows without a finite loss, time left.

    In a terminal it is one line that changes; elsewhere a line each twentieth of the steps. A line is never wider than
    the console, which has 80 columns where nobody knows: what matters least is left out. The advice of a predicted gain
    is a line of its own. A context manager.

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
        self._bar = progress_bar(console, bar_width=_BAR_WIDTH) if console.is_terminal else None
        self._task = (
            None if self._bar is None else self._bar.add_task(title, total=num_steps, completed=first_step, note="")
        )

    def show(self, step: int, values: Mapping[str, Any]) -> None:
        """After a step, with what was measured in it.

        Args:
            step: counted from 0.
            values: by name, None or missing where not measured; other names are left alone. `loss` and `target_loss` in
                nats per token, `forgetting` the service's estimate with its interval, `num_rehearsed` out of
                `num_rows`, `waited_s` for data out of `step_s`; `num_nonfinite_rows` and `was_skipped` add up over the
                steps; `predicted_gain` the service's prediction with its advice.
        """
        if not self._recent and values.get("step_s") is not None:
            # The start, and what is measured before the first step, take long, and come once.
            self._began = self._clock() - values["step_s"]
        self._num_nonfinite += int(values.get("num_nonfinite_rows") or 0)
        self._num_skipped += bool(values.get("was_skipped"))
        parts = ("waited_s", "step_s", "num_rehearsed", "num_rows")
        waited_s, step_s, num_rehearsed, num_rows = (values.get(name) or 0.0 for name in parts)
        self._recent.append((waited_s, step_s, num_rehearsed, num_rows))
        figures = [_Figure(f"step {step + 1:,}/{self._num_steps:,}", 0), *self._figures(values), *self._left(step)]
        if self._bar is not None and self._task is not None:
            title = min(len(self._title), TITLE_WIDTH)
            note = _fitting(figures, self._console.width - title - _BAR_WIDTH - _AROUND_BAR)
            self._bar.update(self._task, completed=step + 1, note=note)
        elif self._is_due(step):
            note = _fitting(figures, self._console.width - len(self._title) - len(_GAP))
            self._print(note)
        advice = (values.get("predicted_gain") or {}).get("advice")
        if advice is not None:
            self._print(advice)

    def __enter__(self) -> "ProgressLine":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _print(self, text: str) -> None:
        self._console.print(f"{self._title}{_GAP}{text}", markup=False, highlight=False, soft_wrap=True)

    def _figures(self, values: Mapping[str, Any]) -> list["_Figure"]:
        waited_s, step_s, num_rehearsed, num_rows = (sum(column) for column in zip(*self._recent, strict=True))
        shown = {
            _Figure("loss {:.3f}", 2): values.get("loss"),
            _Figure("target {:.3f}", 6): values.get("target_loss"),
            _Figure("forgetting {}", 4): _estimate(values.get("forgetting")),
            _Figure("rehearsal {:.1%}", 7): num_rehearsed / num_rows if num_rows > 0 else None,
            _Figure("{} late", 3): values.get("late_steps") or None,
            _Figure("rehearsed {}", 9): _of_due(values),
            _Figure("waiting {:.0%}", 8): waited_s / step_s if step_s > 0 else None,
            _Figure("{:,} not finite", 1): self._num_nonfinite or None,
            _Figure("{:,} skipped", 3): self._num_skipped or None,
        }
        return [_Figure(form.format(value), rank) for (form, rank), value in shown.items() if value is not None]

    def _left(self, step: int) -> list["_Figure"]:
        done, whole = step + 1 - self._first_step, self._num_steps - self._first_step
        left_s = seconds_left(self._clock() - self._began, done / whole, 1 - done / whole)
        return [] if left_s is None else [_Figure(f"{duration(left_s)} left", 5)]

    def _is_due(self, step: int) -> bool:
        every = max(1, self._num_steps // _PLAIN_LINES)
        return (step + 1) % every == 0 or step in (self._first_step, self._num_steps - 1)


def _fitting(figures: list[_Figure], width: int) -> str:
    """As many figures as fit, the step among them at least."""
    kept = list(figures)
    while len(kept) > 1 and len(_GAP.join(each.text for each in kept)) > width:
        kept.remove(max(kept, key=lambda each: each.rank))
    return _GAP.join(each.text for each in kept)


def _estimate(found: Mapping[str, Any] | None) -> str | None:
    """An estimate with its interval, nats per token."""
    if found is None:
        return None
    if found["nats"] is None:
        return "not known yet"
    return f"{found['nats']:+.3f} ({found['low']:+.2f} to {found['high']:+.2f})"


def _of_due(values: Mapping[str, Any]) -> str | None:
    """The rows that the planned steps rehearse, of those that they are due to."""
    due, rehearsed = values.get("rows_due"), values.get("rows_rehearsed")
    return None if due is None or rehearsed is None else f"{rehearsed:,} of {due:,.2f} due"
