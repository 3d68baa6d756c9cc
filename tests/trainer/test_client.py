import os
import pickle
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest

from replay_service.corpus.format.manifest import write_json
from replay_service.corpus.ingest.status import STATUS_NAME, write_begun
from replay_service.gateway.app import create_app
from replay_service.settings import load_settings
from replay_service.testing.transport import in_process
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient
from replay_trainer.errors import (
    NotAllowed,
    RunGone,
    ServiceError,
    ServiceRefused,
    ServiceUnavailable,
    ServiceUnknown,
    TokenRefused,
)
from tests.gateway.worlds import make_token
from tests.proxy import NO_FAULT, FaultyProxy
from tests.support import free_port, make_corpus, running_service
from tests.trainer.flaky import QUICK, Flaky

SETTINGS = {"global_batch_size": 8, "injection_ratio": "0.5", "seed": 3}


class Damaging(httpx2.BaseTransport):
    """Flips one bit of every body, of requests or of answers."""

    def __init__(self, of_requests: bool) -> None:
        self._of_requests = of_requests
        self._onward = httpx2.HTTPTransport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if self._of_requests:
            request = httpx2.Request(
                request.method, request.url, headers=request.headers, content=damaged(request.read())
            )
            return self._onward.handle_request(request)
        answer = self._onward.handle_request(request)
        return httpx2.Response(answer.status_code, headers=answer.headers, content=damaged(answer.read()))

    def close(self) -> None:
        self._onward.close()


def damaged(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 4]) + body[middle + 1 :]


def losses_of(step: int, sample_ids: "np.ndarray") -> "np.ndarray":
    rows = np.zeros(len(sample_ids), dtype=LOSS_ROW)
    rows["step"], rows["sample_id"], rows["loss_nats"], rows["num_tokens"] = step, sample_ids, 2.5, 11
    return rows


def test_batches_come_and_losses_go(service_url: str) -> None:
    with ReplayClient(service_url) as client:
        client.ensure_run("client-1", "wiki", SETTINGS)
        batch = client.batch("client-1", 0, num_steps=2)
        assert [header.num_rehearsed for header in batch.header.steps] == [4, 4]
        assert batch.of_step(1).step.tolist() == [1, 1, 1, 1]
        rows = losses_of(0, batch.of_step(0).sample_id)
        assert client.report("client-1", rows).accepted == 4
        assert client.report("client-1", rows).duplicate == 4
        assert client.stats("client-1")["num_reported"] == 4
        assert sum(each["num_reported"] for each in client.strata("client-1")) == 4


def test_the_same_run_is_found_again_and_another_one_refused(service_url: str) -> None:
    with ReplayClient(service_url) as client:
        client.ensure_run("client-2", "wiki", SETTINGS)
        client.ensure_run("client-2", "wiki", SETTINGS)
        with pytest.raises(ServiceRefused) as refusal:
            client.ensure_run("client-2", "wiki", {**SETTINGS, "seed": 4})
        assert (refusal.value.slug, refusal.value.status) == ("run-exists", 409)


def test_what_the_service_does_not_know_has_a_type_of_its_own(service_url: str) -> None:
    with ReplayClient(service_url) as client:
        with pytest.raises(RunGone, match="no run"):
            client.batch("never-made", 0)
        with pytest.raises(ServiceUnknown, match="no corpus"):
            client.corpus("never-made")


def test_another_server_is_told_apart() -> None:
    transport = Flaky([httpx2.Response(404, text="<html>"), httpx2.Response(200, content=b"not arrow")])
    with ReplayClient("http://127.0.0.1:1", transport=transport) as client:
        with pytest.raises(ServiceRefused, match="is it a replay service"):
            client.corpus("wiki")
        with pytest.raises(ServiceError, match="without a checksum; is it a replay service"):
            client.batch("any", 0)


@pytest.mark.parametrize("of_requests", [True, False])
def test_what_always_comes_damaged_is_never_taken_for_right(service_url: str, of_requests: bool) -> None:
    with ReplayClient(service_url) as client:
        client.ensure_run("damaged", "wiki", SETTINGS)
        rows = losses_of(0, client.batch("damaged", 0).sample_id)
        before = client.stats("damaged")
    with ReplayClient(service_url, transport=Damaging(of_requests), retry=QUICK) as client:
        for call in (lambda: client.batch("damaged", 0), lambda: client.report("damaged", rows)):
            with pytest.raises(ServiceUnavailable, match="kept failing" if of_requests else "not all are right"):
                call()
    with ReplayClient(service_url) as client:
        assert client.stats("damaged")["num_reported"] == (0 if of_requests else 4)
        assert client.stats("damaged")["next_step"] == before["next_step"]


def test_an_answer_to_another_question_is_not_taken(service_url: str) -> None:
    with ReplayClient(service_url) as client:
        client.ensure_run("asked", "wiki", SETTINGS)
        client.ensure_run("answered", "wiki", SETTINGS)

    class Misled(httpx2.HTTPTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            request.url = httpx2.URL(str(request.url).replace("asked", "answered"))
            return super().handle_request(request)

    with (
        ReplayClient(service_url, transport=Misled(), retry=QUICK) as client,
        pytest.raises(ServiceUnavailable, match="a batch of run 'answered'"),
    ):
        client.batch("asked", 0)


def test_a_run_that_plans_no_further_step_is_gone(service_url: str) -> None:
    with ReplayClient(service_url) as client:
        client.ensure_run("over", "wiki", SETTINGS)
        assert len(client.batch("over", 0)) == 4
        client.close_run("over")
        with pytest.raises(RunGone) as refusal:
            client.batch("over", 1)
        assert refusal.value.slug == "run-closed"
        assert len(client.batch("over", 0)) == 4


def test_a_closed_client_gives_up(service_url: str) -> None:
    client = ReplayClient(service_url)
    client.close()
    with pytest.raises(ServiceError, match="closed"):
        client.corpus("wiki")


def test_a_corpus_whose_first_generation_is_being_made_says_how_far_it_is(tmp_path: Path) -> None:
    settings = load_settings(root=tmp_path)
    folder = settings.corpora / "young"
    folder.mkdir(parents=True)
    status = write_begun(folder, os.getpid(), time.time())
    progress = replace(status.progress, num_rows=1234, shards_done=1, num_shards=4, share_done=0.25)
    write_json(folder / STATUS_NAME, asdict(replace(status, progress=progress)))
    with in_process(create_app(settings)) as transport, ReplayClient("http://127.0.0.1", transport=transport) as client:
        said = r"its ingest is running \(1,234 rows scored, 1 of 4 shards, 25% of their bytes"
        with pytest.raises(ServiceRefused, match=said):
            client.corpus("young")
        with pytest.raises(ServiceRefused, match=said):
            client.ensure_run("a-run", "young", SETTINGS)
        with pytest.raises(ServiceUnknown, match="no corpus"):
            client.ensure_run("a-run", "older", SETTINGS)


@pytest.mark.parametrize("by_proxy", [False, True])
def test_a_forked_process_has_connections_of_its_own(
    service_url: str, by_proxy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = urlsplit(service_url)
    with FaultyProxy((url.hostname, url.port), lambda: NO_FAULT) as proxy:
        if by_proxy:
            monkeypatch.setenv("http_proxy", proxy.base_url)
        with ReplayClient(service_url) as client, ProcessPoolExecutor(2, get_context("fork")) as workers:
            assert client.corpus("wiki").num_samples == 80
            SHARED.append(client)
            found = [workers.submit(ask_often) for _ in range(2)]
            assert ask_often() and all(each.result() for each in found)


SHARED: list[ReplayClient] = []
"""What a fork takes along."""


def ask_often() -> bool:
    for number in range(20):
        name = ("wiki", "with-topk")[(os.getpid() + number) % 2]
        if SHARED[-1].corpus(name).corpus != name:
            return False
    return True


def test_a_client_is_sent_to_another_process_without_what_is_secret(
    service_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLAY_TOKEN", "rpl_swordfish")
    with ReplayClient(service_url, retry=QUICK) as client:
        sent = pickle.dumps(client)
        assert b"swordfish" not in sent
        with pickle.loads(sent) as received:
            assert received.corpus("wiki").num_samples == 80 and received.retry == QUICK
    for secret in (ReplayClient(service_url, "rpl_swordfish"), ReplayClient(service_url, transport=Flaky([]))):
        with secret, pytest.raises(ServiceError, match="REPLAY_TOKEN and leave the token out"):
            pickle.dumps(secret)


def test_a_token_opens_what_it_is_for_and_what_is_refused_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_corpus(tmp_path / "corpora")
    token = make_token(tmp_path, "train", runs=("mine",))
    with running_service(tmp_path) as (base_url, _):
        with ReplayClient(base_url, token) as client:
            client.ensure_run("mine", "wiki", SETTINGS)
            assert len(client.batch("mine", 0)) == 4
            with pytest.raises(NotAllowed, match="not for run 'yours'"):
                client.ensure_run("yours", "wiki", SETTINGS)
        for wrong in ("rpl_wrong", ""):
            transport = Flaky([])
            with (
                ReplayClient(base_url, wrong, transport=transport) as client,
                pytest.raises(TokenRefused, match="REPLAY_TOKEN"),
            ):
                client.run("mine")
            assert transport.num_requests == 1
        monkeypatch.setenv("REPLAY_TOKEN", f"{token}\n")
        with ReplayClient(base_url) as client:
            assert client.run("mine")["next_step"] == 1


def everything_of(error: BaseException) -> str:
    """An error and all that led to it, as a traceback and as representations."""
    parts = traceback.format_exception(error)
    cause: BaseException | None = error
    while cause is not None:
        parts += [repr(cause), str(cause), repr(vars(cause))]
        cause = cause.__cause__ or cause.__context__
    return "".join(parts)


@pytest.mark.parametrize(
    "answer", [httpx2.Response(401, json={}), httpx2.Response(503), httpx2.ConnectError("refused")]
)
def test_a_token_is_shown_nowhere(answer: Any) -> None:
    transport = Flaky([answer] * 1000)
    with ReplayClient("http://127.0.0.1:1", "rpl_swordfish", transport=transport, retry=QUICK) as client:
        assert "swordfish" not in repr(client) + str(client)
        with pytest.raises(ServiceError) as failure:
            client.corpus("wiki")
    assert "swordfish" not in everything_of(failure.value)


@pytest.mark.parametrize("token", ["sword\nfish", "sword\u00fcfish", "swordfish\x00"])
def test_a_token_that_is_none_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(ServiceError, match="characters") as failure:
        ReplayClient("http://127.0.0.1:1", token)
    assert "swordfish" not in everything_of(failure.value)
    assert token not in everything_of(failure.value)


def test_a_restart_of_the_service_goes_unnoticed(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpora")
    port = free_port()
    with running_service(tmp_path, port=port) as (base_url, process):
        client = ReplayClient(base_url)
        client.ensure_run("a-run", "wiki", SETTINGS)
        before = client.batch("a-run", 0, num_steps=3)
        process.kill()
    with running_service(tmp_path, port=port), client:
        after = client.batch("a-run", 0, num_steps=3)
    assert after.sample_id.tolist() == before.sample_id.tolist()
