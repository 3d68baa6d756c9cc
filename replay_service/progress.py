"""Progress lines for a person who watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from replay_service.corpus.ingest import IngestProgress


def progress_bar(console: Console) -> Progress:
    """The one form that all progress lines of the project have; a task's `note` field stands at the end."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<23}"),
        BarColumn(bar_width=16),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


@contextmanager
def ingest_progress(console: Console, title: str) -> Iterator[Callable[["IngestProgress"], None]]:
    """A bar over the shards; the note counts rows and tokens."""
    with progress_bar(console) as bar:
        task = bar.add_task(title, total=None, note="starting the base model")

        def show(progress: "IngestProgress") -> None:
            note = f"{progress.num_rows:,} rows, {progress.num_tokens:,} tokens"
            bar.update(task, total=progress.num_shards, completed=progress.shards_done, note=note)

        yield show
