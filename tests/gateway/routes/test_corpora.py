from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fastapi.testclient import TestClient
from fsspec.implementations.memory import MemoryFileSystem

from tests.gateway.worlds import JSON, ask, assert_problem, batch_of, client_on, create_run
from tests.support import make_corpus


def test_a_corpus_says_what_it_holds(client: TestClient) -> None:
    corpus = client.get("/v1/corpora/wiki").json()
    assert (corpus["corpus"], corpus["generation"], corpus["seq_len"]) == ("wiki", 1, 12)
    assert (corpus["num_samples"], corpus["num_tokens"], corpus["num_strata"]) == (80, 960, 4)
    assert [each["name"] for each in corpus["domains"]] == ["en", "fr"]
    assert sum(each["num_samples"] for each in corpus["domains"]) == 80
    assert [(each["name"], each["generation"]) for each in corpus["groups"]] == [("en", 1), ("fr", 1)]
    assert [len(each["quantile_edges_nats"]) for each in corpus["groups"]] == [1, 1]
    assert [each["stratum_sizes"] for each in corpus["groups"]] == [[20, 20], [20, 20]]
    assert (corpus["partition_by"], corpus["topk"], corpus["set_aside"]) == ("domain", 0, {})
    assert corpus["damaged_segments"] == []


def test_a_corpus_says_what_of_it_is_damaged(root: Path, running: TestClient) -> None:
    (root / "corpora/wiki/segments/00000001.arrow").write_bytes(b"not a segment")
    batch = batch_of(running, 0, num_steps=20)
    is_out = batch.sample_id >> 32 == 1
    assert np.array_equal(batch.length == 0, is_out)
    assert is_out.any()
    assert not is_out.all()
    (damage,) = running.get("/v1/corpora/wiki").json()["damaged_segments"]
    assert damage == {"file": "segments/00000001.arrow", "problem": "the file is too short", "num_blocks": 1}


def test_samples_that_cannot_be_read_are_empty_to_people_too(root: Path, running: TestClient) -> None:
    for segment in (root / "corpora/wiki/segments").glob("*.arrow"):
        segment.unlink()
    (step,) = ask(running, JSON).raise_for_status().json()["steps"]
    assert step["samples"]
    assert all(sample["input_ids"] == sample["base_correct"] == [] for sample in step["samples"])


def test_corpora_are_served_from_a_url(root: Path) -> None:
    fsspec.filesystem("memory").put(str(root / "corpora"), f"/{root.name}", recursive=True)
    with client_on(root / "elsewhere", corpora_url=f"memory://{root.name}") as far, client_on(root) as near:
        assert far.get("/v1/corpora").json() == near.get("/v1/corpora").json()
        for client in (far, near):
            assert create_run(client, feedback={"mode": "fenced", "lag": 64}).status_code == 201
        for step in range(0, 8, 2):
            # One rank plans ahead, and what the other asks for next is read ahead.
            for world in ({"rank": 0}, {"rank": 1}):
                batches = [batch_of(each, step, num_steps=2, world_size=2, **world) for each in (far, near)]
                assert np.array_equal(batches[0].sample_id, batches[1].sample_id)
                assert np.array_equal(batches[0].input_ids, batches[1].input_ids)
            batch_of(far, step + 2, num_steps=2, world_size=2)


def test_corpora_out_of_reach_are_unavailable(root: Path) -> None:
    class Unreachable(MemoryFileSystem):
        protocol = "unreachable"
        cachable = False

        def info(self, path: str, **_: Any) -> Any:
            raise OSError("no route to host")

    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    with client_on(root, corpora_url="unreachable://corpora") as client:
        response = client.get("/v1/corpora/wiki")
        assert_problem(response, 503, "corpus-unavailable")
        assert response.headers["retry-after"] == "1"


def test_corpora_are_listed_by_name(root: Path, client: TestClient) -> None:
    make_corpus(root / "corpora", "code")
    corpora = client.get("/v1/corpora").json()["corpora"]
    assert [each["corpus"] for each in corpora] == ["code", "wiki"]
    assert corpora[1] == client.get("/v1/corpora/wiki").json()


def test_a_service_without_a_corpus_starts(tmp_path: Path) -> None:
    with client_on(tmp_path / "new") as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/corpora").json() == {"corpora": []}
        assert_problem(create_run(client), 404, "unknown-corpus")


def test_a_corpus_that_is_made_while_the_service_runs_can_be_used(root: Path, client: TestClient) -> None:
    make_corpus(root / "corpora", "code")
    assert create_run(client, corpus="code").status_code == 201


def test_a_corpus_that_is_still_being_made_is_not_there(root: Path, client: TestClient) -> None:
    (root / "corpora" / "half" / "staging").mkdir(parents=True)
    assert [each["corpus"] for each in client.get("/v1/corpora").json()["corpora"]] == ["wiki"]
    assert_problem(client.get("/v1/corpora/half"), 404, "unknown-corpus")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 3}', '{"format_version": 1}'])
def test_a_damaged_manifest_is_a_problem(root: Path, client: TestClient, content: str) -> None:
    folder = root / "corpora" / "broken"
    folder.mkdir()
    (folder / "manifest.json").write_text(content)
    assert_problem(client.get("/v1/corpora/broken"), 422, "corpus-error")
    assert [each["corpus"] for each in client.get("/v1/corpora").json()["corpora"]] == ["wiki"]


@pytest.mark.parametrize("name", ["nothing", "Wiki", "..", "%2e%2e", "%00", "a" * 300, "wiki%20"])
def test_an_unknown_corpus_is_not_found(client: TestClient, name: str) -> None:
    assert_problem(client.get(f"/v1/corpora/{name}"), 404)
