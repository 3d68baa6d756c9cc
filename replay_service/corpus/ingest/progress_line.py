"""The progress line of an ingest, for a person who watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from replay_service.corpus.ingest.status import IngestProgress
from replay_service.progress import duration, progress_bar, short


@contextmanager
def ingest_progress(console: Console, title: str) -> Iterator[Callable[[IngestProgress], None]]:
    """A bar over the shards' bytes in 80 columns: rows and tokens, and how long the rest may take."""
    with progress_bar(console, bar_width=8) as bar:
        task = bar.add_task(title, total=None, note="starting the base model")

        def show(progress: IngestProgress) -> None:
            note = f"{short(progress.num_rows)} rows, {short(progress.num_tokens)} tokens"
            note += "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
            note = progress.waiting or note
            bar.update(task, total=1.0, completed=progress.share_done, note=note)

        yield show
