import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from replay_service.ledger.combining import Combiner


def test_each_request_is_served_once_and_in_the_order_of_its_thread() -> None:
    served: list[tuple[int, int]] = []
    combiner = Combiner[tuple[int, int]](served.extend)

    def submit(thread: int) -> None:
        for number in range(200):
            combiner.submit((thread, number))
            assert (thread, number) in served

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(submit, range(8)))
    assert sorted(served) == [(thread, number) for thread in range(8) for number in range(200)]
    for thread in range(8):
        assert [number for each, number in served if each == thread] == list(range(200))


def test_what_comes_while_a_thread_serves_is_served_together() -> None:
    batches: list[list[int]] = []
    go_on = threading.Event()

    def serve(batch: Sequence[int]) -> None:
        batches.append(list(batch))
        assert go_on.wait(60)

    combiner = Combiner(serve)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(combiner.submit, 0)
        while not batches:
            time.sleep(0.001)
        others = [pool.submit(combiner.submit, i) for i in (1, 2, 3)]
        while len(combiner._waiting) < 3:
            time.sleep(0.001)
        go_on.set()
        for each in (first, *others):
            each.result()
    assert [sorted(batch) for batch in batches] == [[0], [1, 2, 3]]


def test_a_thread_that_fails_to_serve_keeps_nobody_waiting() -> None:
    def serve(batch: Sequence[int]) -> None:
        if 0 in batch:
            raise KeyboardInterrupt

    combiner = Combiner(serve)
    with pytest.raises(KeyboardInterrupt):
        combiner.submit(0)
    combiner.submit(1)
