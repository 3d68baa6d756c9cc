"""A job on a Ray that grows by a machine while it trains; see test_elastic.py.

    python -m tests.trainer.job.elastic FOLDER MODEL URL

Ray stands on one machine with two CPUs; another one comes once the job has made some steps. Both are this one. Ray
takes some twenty seconds to notice it.
"""

import logging
import os
import sys
import threading
import time
from pathlib import Path

from replay_service.ray_session import QUIET_ENVIRONMENT
from replay_trainer.config import TrainConfig
from replay_trainer.job.metrics import MetricsFile
from tests.trainer.worlds import a_job

NUM_STEPS = 120
GROWS_AFTER = 5


def the_job(folder: Path, model: Path, url: str, run: str) -> TrainConfig:
    """From one to three workers; three do not divide the four rows of a step."""
    return a_job(
        folder,
        model,
        url,
        run=run,
        policy="mix_cd",
        rehearsal={"feedback": "fenced", "feedback_lag": 3},
        num_steps=NUM_STEPS,
        checkpoint_every=5,
        num_workers=3,
        min_workers=1,
        resize_every_s=1.0,
    )


def main(folder: str, model: str, url: str) -> None:
    os.environ.update(QUIET_ENVIRONMENT)
    import ray
    from ray.cluster_utils import Cluster

    from replay_trainer.job.ray_train import run_training

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    environment = {"env_vars": QUIET_ENVIRONMENT}
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
    job = the_job(Path(folder), Path(model), url, "elastic")
    training = threading.Thread(target=run_training, args=(job,))
    training.start()
    while training.is_alive() and len(list(MetricsFile(job.output / "metrics.jsonl").lines())) < GROWS_AFTER:
        time.sleep(0.2)
    # Ray starts the processes of a machine from the main thread alone.
    cluster.add_node(num_cpus=2)
    training.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
