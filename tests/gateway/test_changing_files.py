"""A server whose segment files are cut short and put back while it serves them."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import numpy as np

from replay_service.corpus.reading.reader import Corpus
from tests.gateway.worlds import batch_of, create_run
from tests.support import make_corpus, running_service

FILE = "wiki/segments/00000001.arrow"


def test_a_server_survives_files_that_are_cut_short_and_put_back(tmp_path: Path) -> None:
    """Every row that it serves meanwhile is right or has length 0, and afterwards every row is right."""
    for folder in ("corpora", "copy"):
        make_corpus(tmp_path / folder, rows_per_domain=1500, rows_per_segment=1000)
    copy = Corpus(tmp_path / "copy/wiki")
    served, copied = tmp_path / "corpora" / FILE, tmp_path / "copy" / FILE
    with running_service(tmp_path) as (base_url, process), httpx2.Client(base_url=base_url) as client:
        assert create_run(client, global_batch_size=512, injection_ratio="1").status_code == 201
        counts: list[int] = []
        is_over = threading.Event()

        def num_out() -> int:
            batch = batch_of(client, 0, num_steps=4)
            right, is_in = copy.rows(batch.sample_id), batch.length > 0
            assert np.array_equal(batch.input_ids[is_in], right.input_ids[is_in])
            assert np.array_equal(batch.base_loss[is_in], right.base_loss[is_in])
            assert set((batch.sample_id[~is_in] >> 32).tolist()) <= {1}
            return int(np.count_nonzero(~is_in))

        def hammer() -> None:
            while not is_over.is_set():
                counts.append(num_out())

        assert num_out() == 0
        thread = threading.Thread(target=hammer)
        thread.start()
        for length in (0, 1000, 70_000) * 7:
            os.truncate(served, length)
            time.sleep(0.01)
            shutil.copyfile(copied, served)
            time.sleep(0.01)
        os.truncate(served, 0)
        is_over.set()
        thread.join()
        assert counts
        assert num_out() > 0
        (damage,) = client.get("/v1/corpora/wiki").json()["damaged_segments"]
        assert damage["file"] == "segments/00000001.arrow"
        shutil.copyfile(copied, served)
        until_whole(num_out)
        assert client.get("/v1/corpora/wiki").json()["damaged_segments"] == []
        assert process.poll() is None


def until_whole(num_out: Callable[[], int]) -> None:
    for _ in range(600):
        if not num_out():
            return
        time.sleep(0.05)
    raise AssertionError("the samples do not come again")
