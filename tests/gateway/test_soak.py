"""Many clients for a long time: the server's memory stays flat, no file descriptor is lost, all are answered."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from replay_service.wire.batches import decode_batch
from replay_service.wire.losses import encode_losses
from replay_service.wire.protocol import ARROW_STREAM
from tests.gateway.worlds import RUN, losses_of
from tests.support import make_corpus, running_service

NUM_CLIENTS = 64
SOAK_S = float(os.environ.get("SOAK_S", "600"))
"""How long it lasts; a third of it is the warm-up."""
MOST_GROWTH_BYTES = 32 << 20
"""The state of a run keeps the reports of its latest steps, and the allocator what it may need again."""


def train(base_url: str, run: str, until: float) -> int:
    """Ask for batches and report losses, as one rank does. Every second time on a new connection."""
    step = 0
    with httpx2.Client(base_url=base_url, timeout=60.0) as kept:
        while time.monotonic() < until:
            answer = kept.post(f"/v1/runs/{run}/batches", json={"step": step}).raise_for_status()
            body = bytes(encode_losses(losses_of(decode_batch(answer.content))))
            headers = {"content-type": ARROW_STREAM}
            if step % 2:
                kept.post(f"/v1/runs/{run}/losses", content=body, headers=headers).raise_for_status()
            else:
                url = f"{base_url}/v1/runs/{run}/losses"
                httpx2.post(url, content=body, headers=headers, timeout=60.0).raise_for_status()
            kept.get(f"/v1/runs/{run}/stats").raise_for_status()
            step += 1
    return step


@pytest.mark.slow
@pytest.mark.timeout(SOAK_S + 120)
def test_a_service_under_load_neither_grows_nor_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_corpus(tmp_path / "corpora")
    with running_service(tmp_path) as (base_url, process):
        runs = [f"run-{i}" for i in range(NUM_CLIENTS)]
        for run in runs:
            settings = RUN | {"run": run, "report_window_steps": 16}
            httpx2.post(f"{base_url}/v1/runs", json=settings).raise_for_status()
        server = psutil.Process(process.pid)
        num_files = server.num_fds()
        begin = time.monotonic()
        with ThreadPoolExecutor(NUM_CLIENTS) as clients:
            rounds = [clients.submit(train, base_url, run, begin + SOAK_S) for run in runs]
            time.sleep(SOAK_S / 3)
            warm = server.memory_info().rss
            num_rounds = sum(each.result() for each in rounds)
        at_end = server.memory_info().rss
        for _ in range(100):  # until the server has seen that the clients are gone
            if server.num_fds() <= num_files + NUM_CLIENTS // 4:
                break
            time.sleep(0.1)
        with capsys.disabled():
            print(f"\n{num_rounds} rounds in {SOAK_S:.0f} s; {warm >> 20} -> {at_end >> 20} MiB; ", end="")
            print(f"{num_files} -> {server.num_fds()} files")
        assert num_rounds >= NUM_CLIENTS
        assert at_end - warm < MOST_GROWTH_BYTES
        assert server.num_fds() <= num_files + NUM_CLIENTS // 4  # connections of the journal to its file among them
