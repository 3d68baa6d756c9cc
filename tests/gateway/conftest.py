from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.gateway.worlds import client_on, create_run
from tests.support import make_corpus


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one corpus, `wiki`, of 80 samples in four strata."""
    make_corpus(tmp_path / "corpora")
    return tmp_path


@pytest.fixture
def client(root: Path) -> Iterator[TestClient]:
    with client_on(root) as client:
        yield client


@pytest.fixture
def running(client: TestClient) -> TestClient:
    """A client whose service has a run, `tune`: 0.3 of 8 sequences a step."""
    assert create_run(client).status_code == 201
    return client
