from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from replay_service.language.model import load_model
from replay_service.language.tokenizer import load_tokenizer
from tests.evidence.recomputed import since
from tests.evidence.shards import write_shard
from tests.evidence.tracked import Measured, points_file, track
from tests.evidence.truth import means, rows_of_corpus, rows_of_text
from tests.support import running_service
from tests.trainer.worlds import SEQ_LEN, a_job, corpus_for


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[Path, str]]:
    root = tmp_path_factory.mktemp("root")
    corpus_for(tiny_model, root)
    with running_service(root) as (url, _):
        yield root, url


def test_rows_of_a_corpus_are_of_the_domains_that_they_are_said_to_be(served: tuple[Path, str]) -> None:
    rows = rows_of_corpus(served[0] / "corpora" / "wiki", 30, seed=0)
    assert rows.domains == ("en", "fr")
    assert np.bincount(rows.domain).tolist() == [30, 30]
    assert rows.share.tolist() == [0.5, 0.5]
    everything = rows_of_corpus(served[0] / "corpora" / "wiki", 1000, seed=0)
    assert len(np.unique(everything.packed.input_ids, axis=0)) == len(everything.packed)


def test_means_weigh_domains_by_their_share(served: tuple[Path, str]) -> None:
    rows = rows_of_corpus(served[0] / "corpora" / "wiki", 20, seed=0)
    whole, of_domain = means(rows, np.where(rows.domain == 0, 1.0, 3.0))
    assert (whole.nats, whole.standard_error) == (2.0, 0.0)
    assert {name: each.nats for name, each in of_domain.items()} == {"en": 1.0, "fr": 3.0}


def test_a_job_is_measured_beside_what_the_service_estimates_and_not_run_twice_when_finished(
    served: tuple[Path, str], tiny_model: Path, tmp_path: Path
) -> None:
    root, url = served
    rows = rows_of_corpus(root / "corpora" / "wiki", 8, seed=0)
    model = load_model(str(tiny_model))
    job = a_job(tmp_path, tiny_model, url, run="tracked", num_steps=4, checkpoint_every=2)
    told: list[int] = []
    measured = {"corpus": Measured.by(model, rows, "float32")}
    points = track(job, measured, tmp_path / "results", told.append)
    assert [each.step for each in points] == told == [2, 4]
    assert points[0].truth != points[1].truth
    assert points[0].num_rehearsed > 0 and points[0].estimate["reason"] is not None
    assert track(job, measured, tmp_path / "results", told.append) == points
    assert told == [2, 4]
    again, later = since(root, points, 0), since(root, points, 2)
    assert [each.estimate["num_effective"] for each in again] == [each.estimate["num_effective"] for each in points]
    assert [each.step for each in later] == [4]
    assert later[0].estimate["num_effective"] < again[1].estimate["num_effective"]
    points_file(tmp_path / "results", "tracked").unlink()
    assert [each.truth for each in track(job, measured, tmp_path / "results")] == [each.truth for each in points]


def test_rows_of_text_have_a_domain_each(tiny_model: Path, tmp_path: Path) -> None:
    for domain in ("de", "en"):
        write_shard(tmp_path / f"{domain}.parquet", domain, [f"{domain} text number {i}" for i in range(20)])
    rows = rows_of_text(tmp_path, load_tokenizer(str(tiny_model)), SEQ_LEN, 5, 0, {"en": 0.8, "de": 0.2})
    assert rows.domains == ("de", "en")
    assert rows.share.tolist() == [0.2, 0.8]
    assert np.bincount(rows.domain).tolist() == [5, 5]
