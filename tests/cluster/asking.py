"""Small questions to a cluster, asked on one of its hosts: python -m tests.cluster.asking WHAT ARGUMENTS"""

import json
import sys
import time

import httpx2
from sqlalchemy import create_engine, text

from replay_service.ledger.database import engine_of
from replay_service.ledger.service_lease import ServiceLease
from replay_trainer.client import ReplayClient, RetryPolicy

PATIENT = RetryPolicy(give_up_after_s=120.0)


def lease(database_url: str) -> str:
    """The address of the owner."""
    return ServiceLease(engine_of(database_url)).read().address


def expel(database_url: str) -> str:
    """End the lease of the owner, as another candidate would that takes it by force."""
    found = ServiceLease(engine_of(database_url))
    seen = found.read()
    epoch = found.take(seen, "", "", 1.0, by_force=True)
    return str(epoch)


def ready(url: str) -> str:
    return str(httpx2.get(f"{url}/readyz", timeout=5.0).status_code)


def create(urls: str, run: str, settings: str) -> str:
    content = json.loads(settings)
    with ReplayClient(urls, retry=PATIENT) as client:
        return str(client.ensure_run(run, content.pop("corpus"), content)["run"])


def stats(urls: str, run: str) -> str:
    with ReplayClient(urls, retry=PATIENT) as client:
        return json.dumps(client.stats(run))


def plans(urls: str, run: str, num_steps: str) -> str:
    """The ids of each step of a run."""
    with ReplayClient(urls, retry=PATIENT) as client:
        return json.dumps([client.batch(run, step).sample_id.tolist() for step in range(int(num_steps))])


def hold(database_url: str, run: str) -> str:
    """Hold the row of a run in a transaction, for ever."""
    with create_engine(database_url).begin() as connection:
        connection.execute(text("SET idle_in_transaction_session_timeout = '10s'"))
        connection.execute(text("SELECT 1 FROM runs WHERE run = :run FOR UPDATE"), {"run": run})
        print("held", flush=True)
        time.sleep(3600)
    return ""


if __name__ == "__main__":
    question = {each.__name__: each for each in (lease, expel, ready, create, stats, plans, hold)}[sys.argv[1]]
    print(question(*sys.argv[2:]))
