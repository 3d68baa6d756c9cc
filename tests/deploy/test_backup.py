"""Backup and restore, rehearsed with the commands of deploy/README.md on a real PostgreSQL."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient
from tests.databases import find_postgresql
from tests.deploy.compose import ROOT
from tests.support import make_corpus, running_service

RUN = "rehearsed"
SETTINGS: dict[str, Any] = {
    "seed": 3,
    "injection_ratio": 0.5,
    "global_batch_size": 8,
    "feedback": {"mode": "fenced", "lag": 2},
}


def commands(marker: str) -> str:
    (block,) = re.findall(rf"<!-- {marker} -->\n```bash\n(.*?)```", (ROOT / "deploy/README.md").read_text(), re.DOTALL)
    return str(block)


def shell(script: str, folder: Path, **variables: str) -> str:
    programs = find_postgresql()
    path = f"{Path(sys.executable).parent}:{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env={**os.environ, **variables, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def trained(client: ReplayClient, first: int, stop: int) -> list[list[int]]:
    """The ids of the samples of some steps, whose losses are reported."""
    ids = []
    for step in range(first, stop):
        sample_id = client.batch(RUN, step).of_step(step).sample_id
        rows = np.zeros(len(sample_id), LOSS_ROW)
        rows["step"], rows["sample_id"], rows["loss_nats"], rows["num_tokens"] = step, sample_id, 2.0, 11
        client.report(RUN, rows)
        ids.append(sample_id.tolist())
    return ids


def test_what_was_dumped_while_the_service_ran_is_restored_and_goes_on(
    tmp_path: Path, postgresql_url: str, postgresql_database: str
) -> None:
    make_corpus(tmp_path / "corpora")
    restored = postgresql_url.format(database="restored")
    plain = {name: url.replace("+psycopg", "") for name, url in (("a", postgresql_database), ("b", restored))}
    variables = {"DATABASE": plain["a"], "RESTORED": plain["b"], "JOURNAL": restored, "RUN": RUN}
    with running_service(tmp_path, database_url=postgresql_database) as (url, _), ReplayClient(url) as client:
        client.ensure_run(RUN, "wiki", SETTINGS)
        before = trained(client, 0, 10)
        shell(commands("backup"), tmp_path, **variables)
        lost = trained(client, 10, 14)
    said = shell(commands("restore"), tmp_path, **variables)
    assert f"run {RUN} verifies" in said
    with running_service(tmp_path, database_url=restored) as (url, _), ReplayClient(url) as client:
        assert client.run(RUN)["next_step"] == 10
        assert [client.batch(RUN, step).of_step(step).sample_id.tolist() for step in range(10)] == before
        # In fenced mode plans follow from the reports alone.
        assert trained(client, 10, 14) == lost
