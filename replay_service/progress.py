"""Progress lines for a person who watches."""

from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

TITLE_WIDTH: Final = 23
"""Columns of a task's description, at most."""


def progress_bar(console: Console, bar_width: int = 16) -> Progress:
    """The one form that all progress lines of the project have; a task's `note` field stands at the end."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(max_width=TITLE_WIDTH, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=bar_width),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def seconds_left(elapsed_s: float, share_done: float, share_left: float) -> float | None:
    """How long the rest takes if it goes on as it went; None while nothing is done, or nothing is left."""
    return elapsed_s * share_left / share_done if share_done > 0 and share_left > 0 else None


def short(number: int) -> str:
    """A count in at most five characters or so: 950, 12.3k, 4.5M."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}" if number < 100 * size else f"{number / size:.0f}{unit}"
    return str(number)


def duration(seconds: float) -> str:
    """As people say it: 40 s, 5 min, 3 h, 2 d."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
