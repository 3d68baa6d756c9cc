"""Another corpus under the name of the one that a run began on."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest

from replay_service.corpus.reading.reader import Corpus
from replay_service.wire.batches import decode_batch
from tests.gateway.worlds import (
    RUN,
    ask,
    assert_problem,
    batch_of,
    client_on,
    create_run,
    losses_of,
    report,
)
from tests.support import grow_corpus, make_corpus, running_service

NUM_STEPS = 6
ROWS = pytest.mark.parametrize("rows_per_domain", [3, 40, 200], ids=["smaller", "as large", "larger"])


@contextmanager
def replaced(root: Path, rows_per_domain: int) -> Iterator[None]:
    """Another corpus has the name; the first one is brought back afterwards."""
    corpus, kept = root / "corpora" / "wiki", root / "kept"
    corpus.rename(kept)
    make_corpus(root / "corpora", seed=5, rows_per_domain=rows_per_domain)
    yield
    shutil.rmtree(corpus)
    kept.rename(corpus)


def known_of(client: httpx2.Client) -> list[object]:
    """What the run says of itself without its corpus."""
    return [client.get(f"/v1/runs/tune{part}").raise_for_status().json() for part in ("", "/stats")]


def assert_refused(client: httpx2.Client, rows: np.ndarray) -> None:
    """All that needs the corpus is refused, and changes nothing."""
    before = known_of(client)
    for answer in (
        *(ask(client, step=step, num_steps=num) for step, num in ((0, NUM_STEPS), (3, 1), (NUM_STEPS, 2))),
        report(client, rows),
        client.get("/v1/runs/tune/strata"),
        client.get("/v1/runs/tune/samples"),
        client.get(f"/v1/runs/tune/samples/{rows['sample_id'][0]}"),
        client.post("/v1/runs/tune/adopt", json={}),
        create_run(client),
    ):
        problem = assert_problem(answer, 409, "corpus-replaced")
        assert "bring the corpus back" in problem["detail"]
        assert known_of(client) == before


def assert_refused_until_it_is_back(client: httpx2.Client, root: Path, rows_per_domain: int) -> None:
    assert create_run(client).status_code == 201
    batch = batch_of(client, 0, NUM_STEPS)
    rows = losses_of(batch)
    assert report(client, rows[::2]).status_code == 200
    with replaced(root, rows_per_domain):
        assert_refused(client, rows)
    again = batch_of(client, 0, NUM_STEPS)
    np.testing.assert_array_equal(again.input_ids, batch.input_ids)
    assert (batch_of(client, NUM_STEPS, 20).length > 0).all()
    assert report(client, rows).json()["accepted"] == len(rows) // 2
    assert client.get("/v1/runs/tune/samples").status_code == client.get("/v1/runs/tune/strata").status_code == 200


@ROWS
def test_a_run_does_nothing_with_another_corpus_and_goes_on_when_its_own_is_back(
    root: Path, rows_per_domain: int
) -> None:
    with client_on(root) as client:
        assert_refused_until_it_is_back(client, root, rows_per_domain)


@pytest.mark.parametrize("rows_per_domain", [3])
def test_several_gateways_do_nothing_with_another_corpus_either(root: Path, rows_per_domain: int) -> None:
    with (
        running_service(root, options=["--gateways", "2"]) as (base_url, _),
        httpx2.Client(base_url=base_url, timeout=60.0) as client,
    ):
        assert_refused_until_it_is_back(client, root, rows_per_domain)


def test_a_service_that_starts_on_another_corpus_refuses_its_runs_too(root: Path) -> None:
    with client_on(root) as client:
        create_run(client)
        rows = losses_of(batch_of(client, 0, NUM_STEPS))
    with replaced(root, 40), client_on(root) as client:
        assert_refused(client, rows)


@ROWS
def test_a_new_run_samples_the_other_corpus(root: Path, rows_per_domain: int) -> None:
    with client_on(root) as client:
        create_run(client)
        batch_of(client, 0, NUM_STEPS)
        with replaced(root, rows_per_domain):
            assert client.post("/v1/runs", json=RUN | {"run": "other"}).status_code == 201
            answer = client.post("/v1/runs/other/batches", json={"step": 0, "num_steps": 2})
            batch = decode_batch(answer.content)
            expected = Corpus(root / "corpora" / "wiki").rows(batch.sample_id)
            np.testing.assert_array_equal(batch.input_ids, expected.input_ids)
            assert (batch.length > 0).all()


def test_a_corpus_that_has_grown_is_no_other_one(root: Path) -> None:
    with client_on(root) as client:
        create_run(client)
        batch = batch_of(client, 0, NUM_STEPS)
        grow_corpus(root / "corpora", new_domain="es")
        assert create_run(client).status_code == 200
        assert report(client, losses_of(batch)).json()["accepted"] == len(batch)
        assert client.post("/v1/runs/tune/adopt", json={}).json()["generation"] == 2
        assert (batch_of(client, 0, 2 * NUM_STEPS).length > 0).all()
