from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from replay_service.testing import replay_service
from tests.trainer.plain_ranks import first_steps

RUNS = {"floors": (2, 2), "ceilings": (3, 3), "whole": (2, 3)}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    """What each of two ranks was told in each run."""
    store = str(tmp_path_factory.mktemp("ranks") / "store")
    with (
        replay_service(seq_len=12, vocab_size=300, serve=True) as service,
        ProcessPoolExecutor(2, get_context("spawn")) as ranks,
    ):
        told = list(ranks.map(first_steps, [service.url] * 2, [store] * 2, range(2), [RUNS] * 2))
    yield {run: [each[number] for each in told] for number, run in enumerate(RUNS)}


@pytest.mark.parametrize(("run", "total"), [("floors", 4), ("ceilings", 6)])
def test_rows_that_fit_each_rank_and_not_all_of_them_are_refused_on_every_rank(
    said: dict[str, list[str]], run: str, total: int
) -> None:
    for told, num_rows in zip(said[run], RUNS[run], strict=True):
        assert told.startswith(f"step 0 has {total} fine-tuning rows over 2 ranks, {num_rows} of them on this one")
        assert "global_batch_size 5, so it would rehearse another share" in told


def test_ranks_that_share_a_batch_which_they_do_not_divide_go_on(said: dict[str, list[str]]) -> None:
    assert said["whole"] == ["", ""]
