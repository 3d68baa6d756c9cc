"""The client and a real server, with a network between them that fails in every way."""

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from replay_service.wire.batches import Batch
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient, RetryPolicy
from replay_trainer.errors import ServiceError, ServiceUnavailable
from tests.proxy import KINDS, NO_FAULT, Fault, FaultyProxy, Kind, random_faults
from tests.support import make_corpus, running_service

SETTINGS = {"global_batch_size": 16, "injection_ratio": "0.5", "seed": 3}
ATTEMPT_S = 0.5
PATIENT = RetryPolicy(give_up_after_s=30.0, first_wait_s=0.01, longest_wait_s=0.05)
HASTY = RetryPolicy(give_up_after_s=0.8, first_wait_s=0.01, longest_wait_s=0.05)
LONG_S = 20.0
"""Far more than any call here may take, and far less than for ever."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("service")
    make_corpus(root / "corpora", rows_per_domain=200, seq_len=256)
    with running_service(root) as (base_url, _):
        yield base_url


def proxied(service: str, next_fault: Callable[[], Fault]) -> FaultyProxy:
    url = urlsplit(service)
    assert url.hostname is not None and url.port is not None
    return FaultyProxy((url.hostname, url.port), next_fault)


def at_first(*faults: Fault) -> Callable[[], Fault]:
    """These faults for the first connections, then none."""
    rest = iter(faults)
    return lambda: next(rest, NO_FAULT)


def content_of(batch: Batch) -> dict[str, Any]:
    """All of a batch, as bytes."""
    return {"header": asdict(batch.header), **{name: each.tobytes() for name, each in batch.columns().items()}}


def measured(batch: Batch) -> np.ndarray:
    """LOSS_ROW of each sample of a batch, a function of its id."""
    rows = np.zeros(len(batch), dtype=LOSS_ROW)
    rows["step"], rows["sample_id"], rows["num_tokens"] = batch.step, batch.sample_id, 11
    rows["loss_nats"] = 1.0 + batch.sample_id % 1009 / 1009
    return rows


@pytest.mark.parametrize("after", [0, 40, 1500])
@pytest.mark.parametrize("towards", ["client", "server"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_the_network_goes_unnoticed(service: str, kind: Kind, towards: Any, after: int) -> None:
    run = f"one-{kind}-{towards}-{after}"
    with ReplayClient(service) as direct:
        direct.ensure_run(run, "wiki", SETTINGS)
        # A damaged head may turn a request into another one, which the service then rightly refuses.
        place = 500 if kind == "damage" and after < 500 else after
        if kind == "damage" and towards == "server":
            place = 300
        with (
            proxied(service, at_first(Fault(kind, towards, place))) as proxy,
            ReplayClient(proxy.base_url, retry=PATIENT, timeout_s=ATTEMPT_S) as client,
        ):
            batch = client.batch(run, 0, num_steps=4)
            assert client.report(run, measured(batch)).rejected == 0
        assert content_of(batch) == content_of(direct.batch(run, 0, num_steps=4))
        assert direct.stats(run)["num_reported"] == len(np.unique(batch.sample_id)) == 32


@pytest.mark.parametrize("after", [0, 1500])
@pytest.mark.parametrize("towards", ["client", "server"])
@pytest.mark.parametrize("kind", ["none", "delay", "cut", "reset", "silence", "trickle"])
def test_a_fault_on_the_way_by_a_proxy_goes_unnoticed(
    service: str, kind: Kind, towards: Any, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"by-proxy-{kind}-{towards}-{after}"
    with ReplayClient(service) as direct:
        direct.ensure_run(run, "wiki", SETTINGS)
        with proxied(service, at_first(Fault(kind, towards, after))) as proxy:
            monkeypatch.setenv("http_proxy", proxy.base_url)
            with ReplayClient(service, retry=PATIENT, timeout_s=ATTEMPT_S) as client:
                batch = client.batch(run, 0, num_steps=4)
                assert client.report(run, measured(batch)).rejected == 0
            assert proxy.faults
        assert content_of(batch) == content_of(direct.batch(run, 0, num_steps=4))
        assert direct.stats(run)["num_reported"] == 32


@pytest.mark.parametrize("towards", ["client", "server"])
@pytest.mark.parametrize("kind", ["silence", "trickle", "cut", "reset"])
def test_a_network_that_stays_broken_is_a_typed_error_in_time(service: str, kind: Kind, towards: Any) -> None:
    with (
        proxied(service, lambda: Fault(kind, towards)) as proxy,
        ReplayClient(proxy.base_url, retry=HASTY, timeout_s=ATTEMPT_S) as client,
    ):
        began = time.monotonic()
        with pytest.raises(ServiceUnavailable, match="did not answer"):
            client.corpus("wiki")
        assert time.monotonic() - began < LONG_S


def test_a_peer_that_takes_connections_and_says_nothing_is_a_typed_error_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with ReplayClient(f"http://127.0.0.1:{port}", retry=HASTY, timeout_s=ATTEMPT_S) as client:
            began = time.monotonic()
            with pytest.raises(ServiceUnavailable, match="did not answer"):
                client.batch("a-run", 0)
            assert time.monotonic() - began < LONG_S


@dataclass(slots=True)
class Tally:
    """How the calls over a bad network ended."""

    right: int = 0
    failed: int = 0
    longest_s: float = 0.0


def play(service: str, run: str, seed: int, num_windows: int) -> Tally:
    """Train over a bad network: every batch is right or an error, every acknowledged report counts once."""
    tally, acknowledged, sent = Tally(), set[tuple[int, int]](), {}
    with (
        ReplayClient(service) as direct,
        proxied(service, random_faults(seed, 0.5, 12_000)) as proxy,
        ReplayClient(proxy.base_url, retry=RetryPolicy(5.0, 0.01, 0.02), timeout_s=ATTEMPT_S) as client,
    ):
        direct.ensure_run(run, "wiki", SETTINGS)
        rng = np.random.default_rng(seed)
        for step in range(0, 2 * num_windows, 2):
            began = time.monotonic()
            try:
                batch = client.batch(run, step, num_steps=2)
                assert content_of(batch) == content_of(direct.batch(run, step, num_steps=2))
                for part in np.array_split(measured(batch), int(rng.integers(1, 4))):
                    sent.update({(int(row["step"]), int(row["sample_id"])): row["loss_nats"] for row in part})
                    client.report(run, part)
                    acknowledged.update((int(row["step"]), int(row["sample_id"])) for row in part)
                tally.right += 1
            except ServiceError:
                tally.failed += 1
            tally.longest_s = max(tally.longest_s, time.monotonic() - began)
        check_reports(direct, run, acknowledged, sent)
    return tally


def check_reports(
    direct: ReplayClient, run: str, acknowledged: set[tuple[int, int]], sent: dict[tuple[int, int], float]
) -> None:
    """What was acknowledged counts once, and what counts is what was sent."""
    found: dict[tuple[int, int], float] = {}
    for sample_id in {sample_id for _, sample_id in sent}:
        try:
            history = direct._json("GET", f"/v1/runs/{run}/samples/{sample_id}")
        except ServiceError:
            continue
        visits = [(each["step"], sample_id) for each in history["visits"]]
        assert len(visits) == len(set(visits))
        found.update({(each["step"], sample_id): each["loss_nats"] for each in history["visits"]})
    assert acknowledged <= found.keys() <= sent.keys()
    assert all(loss == sent[place] for place, loss in found.items())
    assert direct.stats(run)["num_reported"] == len(found)


def test_over_a_bad_network_batches_are_right_and_acknowledged_reports_count_once(service: str) -> None:
    tally = play(service, "bad-network", seed=1, num_windows=25)
    assert tally.right > tally.failed
    assert tally.longest_s < 4 * LONG_S


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_over_many_bad_networks_batches_are_right_and_acknowledged_reports_count_once(service: str, seed: int) -> None:
    tally = play(service, f"bad-network-{seed}", seed, num_windows=60)
    assert tally.right > tally.failed
    assert tally.longest_s < 4 * LONG_S
