"""Write a small journal and what is known of it, for later releases to read; see test_older_journals.py.

    python -m tests.ledger.stored_journal tests/ledger/journals/NAME

The journal of an earlier release is written by this file in a checkout of that release, so it takes only what every
release has: the service for tests, and its client.
"""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np

from replay_service.testing import replay_service
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient

RUNS: dict[str, dict[str, Any]] = {
    "uniform": {"policy": "uniform"},
    "by-damage": {"policy": "mix_cd", "feedback": {"mode": "fenced", "lag": 2}},
}
FIGURES = (
    "next_step",
    "attempt",
    "policy_version",
    "rows_planned",
    "rows_rehearsed",
    "num_reported",
    "mean_excess_nats",
)
FIGURES_OF_STRATA = ("num_reported", "num_tokens", "num_flips", "damage_rate", "draw_share")
NUM_STEPS = 8
REWOUND_TO = 4


def known_of(client: ReplayClient, run: str) -> dict[str, Any]:
    """Its statistics, and what it rehearses in each step up to one that is not planned yet."""
    stats, strata = client.stats(run), client.strata(run)
    plans = [client.batch(run, step).sample_id.tolist() for step in range(stats["next_step"] + 1)]
    return {
        "stats": {name: stats[name] for name in FIGURES},
        "strata": [{name: each[name] for name in FIGURES_OF_STRATA} for each in strata],
        "plans": plans,
    }


def write(client: ReplayClient, run: str, settings: dict[str, Any]) -> None:
    """Steps with reports, another configuration, a rewind, other steps, and an end."""
    client.ensure_run(run, "pretraining", {"global_batch_size": 8, "injection_ratio": "0.5", "seed": 7, **settings})
    for step in range(NUM_STEPS):
        take(client, run, step)
        if step == 2:
            client.configure(run, injection_ratio="0.25")
    client.rewind(run, REWOUND_TO)
    for step in range(REWOUND_TO + 1, NUM_STEPS):
        take(client, run, step)
    client.finish_run(run, NUM_STEPS)


def take(client: ReplayClient, run: str, step: int) -> None:
    batch = client.batch(run, step)
    rows = np.zeros(len(batch), dtype=LOSS_ROW)
    rows["step"], rows["sample_id"], rows["attempt"] = step, batch.sample_id, batch.header.attempt
    rows["loss_nats"], rows["num_tokens"] = 2.0 + batch.sample_id % 7 / 4, 15
    rows["num_flips"] = batch.sample_id % 5
    client.report(run, rows)


def main(place: Path) -> None:
    database = place.with_suffix(".db")
    with replay_service(settings={"database_url": f"sqlite:///{database}"}) as service, service.client() as client:
        for run, settings in RUNS.items():
            write(client, run, settings)
    connection = sqlite3.connect(database)
    place.with_suffix(".sql").write_text("\n".join(connection.iterdump()) + "\n")
    connection.close()
    # Only now is a further step planned, which the journal must not know.
    with replay_service(settings={"database_url": f"sqlite:///{database}"}) as service, service.client() as client:
        known = {run: known_of(client, run) for run in RUNS}
    place.with_suffix(".json").write_text(json.dumps(known) + "\n")
    database.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
