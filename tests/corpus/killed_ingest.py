"""An ingest in a process of its own that is killed by SIGKILL; it joins the Ray that RAY_ADDRESS names.

`python -m tests.corpus.killed_ingest SOURCE FOLDER MODEL SCORERS LOG ROWS SECONDS` writes the rows that it has scored
to LOG as it goes, and dies so many seconds after so many of them.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from replay_service.corpus.ingest.driver import ingest
from replay_service.corpus.ingest.status import IngestProgress
from replay_service.ray_session import start_ray
from tests.corpus.ingested import settings_of


def main(source: str, folder: str, model: str, scorers: str, log: str, rows: str, seconds: str) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(progress: IngestProgress) -> None:
        with Path(log).open("a") as file:
            file.write(f"{progress.num_rows}\n")
        if progress.num_rows >= int(rows) and not dying.is_set():
            dying.set()
            threading.Timer(float(seconds), die).start()

    dying = threading.Event()
    start_ray()
    ingest(settings_of(source, Path(folder), Path(model), num_scorers=int(scorers)), watch)
    die()  # it was faster


if __name__ == "__main__":
    main(*sys.argv[1:])
