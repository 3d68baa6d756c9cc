"""One job uses a run at a time: what a second one is told, and what goes on."""

import gc
import os
import socket
import threading
from collections.abc import Iterator

import pytest
import torch

from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer.client import ReplayClient
from replay_trainer.errors import RunGone, RunInUse
from replay_trainer.job_claim import JobClaim, job_name
from replay_trainer.plain import Rehearsal

SETTINGS = {"global_batch_size": 4, "injection_ratio": "0.5", "injection_mode": "add"}
ROWS = {name: torch.ones(4, 6).long() for name in ("input_ids", "labels")}


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    with replay_service(seq_len=6) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: ServiceUnderTest) -> Iterator[ReplayClient]:
    with service.client() as found:
        yield found


def a_run(client: ReplayClient, run: str) -> Rehearsal:
    client.ensure_run(run, "pretraining", SETTINGS)
    return Rehearsal(client, run)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"REPLAY_JOB": "mine", "TORCHELASTIC_RUN_ID": "a", "SLURM_JOB_ID": "7"}, "mine"),
        ({"TORCHELASTIC_RUN_ID": "nightly", "SLURM_JOB_ID": "7"}, "nightly"),
        ({"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "7"}, "slurm-7"),
    ],
)
def test_a_job_is_named_by_what_stays_after_a_restart(environment: dict[str, str], name: str) -> None:
    assert job_name(environment) == name


def test_a_job_without_a_name_is_a_process() -> None:
    assert job_name({"TORCHELASTIC_RUN_ID": "none", "REPLAY_JOB": ""}) == f"{socket.gethostname()}-{os.getpid()}"


def test_a_second_job_is_refused_before_it_changes_anything(
    client: ReplayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsal = a_run(client, "used")
    monkeypatch.setenv("REPLAY_JOB", "first")
    with rehearsal.open(num_steps=3) as loop:
        loop.mix(0, ROWS)
        attempt = client.run("used")["attempt"]
        monkeypatch.setenv("REPLAY_JOB", "second")
        with pytest.raises(RunInUse, match=r"'used' is used by job 'first', last seen \d+ s ago; create a run"):
            rehearsal.open(num_steps=3, on_existing="rewind")
        assert client.run("used")["attempt"] == attempt
        loop.mix(1, ROWS)
    # The first has ended, and let go of the run.
    with rehearsal.open(num_steps=3, on_existing="rewind") as loop:
        loop.mix(0, ROWS)


def test_a_restart_of_the_same_job_and_its_other_ranks_go_on(
    client: ReplayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLAY_JOB", "same")
    rehearsal = a_run(client, "restarted")
    killed = rehearsal.open(num_steps=2)
    again = rehearsal.open(num_steps=2)
    monkeypatch.setenv("REPLAY_JOB", "of another rank")
    with rehearsal.open(1, 2, num_steps=2) as rank:
        assert rank.claim is None
    for loop in (killed, again):
        loop.close()


def test_a_job_whose_run_is_taken_over_ends(client: ReplayClient, monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal = a_run(client, "taken")
    monkeypatch.setenv("REPLAY_JOB", "first")
    loop = rehearsal.open(num_steps=3)
    loop.mix(0, ROWS)
    monkeypatch.setenv("REPLAY_JOB", "second")
    monkeypatch.setenv("REPLAY_TAKE_OVER", "1")
    second = rehearsal.open(num_steps=3, on_existing="rewind")
    assert loop.claim is not None
    loop.claim.renew()
    with pytest.raises(RunGone, match="job 'second' has taken run 'taken' over from job 'first'"):
        loop.mix(1, ROWS)
    loop.close()
    second.mix(0, ROWS)
    second.close()


def test_a_claim_is_renewed_in_the_background_until_nobody_has_it(client: ReplayClient) -> None:
    a_run(client, "renewed")
    claim = JobClaim.of(client, "renewed", "first", {}, renew_s=0.001)
    client.release("renewed", "first")
    told = threading.Event()
    while not told.wait(0.01):
        try:
            client.claim("renewed", "second")
        except RunInUse:
            break
        client.release("renewed", "second")
    thread = claim._thread
    del claim
    gc.collect()
    thread.join()
    client.claim("renewed", "second", take_over=True)


def test_a_service_that_lost_its_claims_gets_them_again_and_no_job_ends(client: ReplayClient) -> None:
    a_run(client, "forgotten")
    claim = JobClaim.of(client, "forgotten", "first", {})
    client.release("forgotten", "first")
    claim.renew()
    with pytest.raises(RunInUse):
        client.claim("forgotten", "second")
    client.release("forgotten", "first")
    client.claim("forgotten", "second")
    claim.renew()
    claim.check()
    claim.close()
    with pytest.raises(RunInUse, match="by job 'second'"):
        client.claim("forgotten", "third")
