"""An ingest that dies by SIGKILL as soon as a shard is done; it joins the Ray that RAY_ADDRESS names."""

import os
import signal
import sys
from pathlib import Path

from replay_service.corpus.ingest import IngestProgress, IngestSettings, ingest
from replay_service.ray_session import start_ray


def settings_of(source: Path, folder: Path, model: Path) -> IngestSettings:
    return IngestSettings(
        source, folder, "mixed", str(model), seq_len=32, num_quantiles=3, precision="float32", rows_per_segment=50
    )


def die_when_a_shard_is_done(progress: IngestProgress) -> None:
    if progress.shards_done:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    start_ray()
    source, folder, model = map(Path, sys.argv[1:])
    ingest(settings_of(source, folder, model), die_when_a_shard_is_done)
