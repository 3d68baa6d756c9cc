from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.gateway.worlds import assert_problem, client_on, create_run
from tests.support import make_corpus


def test_a_corpus_says_what_it_holds(client: TestClient) -> None:
    corpus = client.get("/v1/corpora/wiki").json()
    assert (corpus["corpus"], corpus["generation"], corpus["seq_len"]) == ("wiki", 1, 12)
    assert (corpus["num_samples"], corpus["num_tokens"], corpus["num_strata"]) == (80, 960, 4)
    assert [each["name"] for each in corpus["domains"]] == ["en", "fr"]
    assert sum(each["num_samples"] for each in corpus["domains"]) == 80
    assert [len(each["quantile_edges_nats"]) for each in corpus["domains"]] == [1, 1]


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


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 2}', '{"format_version": 1}'])
def test_a_damaged_manifest_is_a_problem(root: Path, client: TestClient, content: str) -> None:
    folder = root / "corpora" / "broken"
    folder.mkdir()
    (folder / "manifest.json").write_text(content)
    assert_problem(client.get("/v1/corpora/broken"), 422, "corpus-error")
    assert [each["corpus"] for each in client.get("/v1/corpora").json()["corpora"]] == ["wiki"]


@pytest.mark.parametrize("name", ["nothing", "Wiki", "..", "%2e%2e", "%00", "a" * 300, "wiki%20"])
def test_an_unknown_corpus_is_not_found(client: TestClient, name: str) -> None:
    assert_problem(client.get(f"/v1/corpora/{name}"), 404)
