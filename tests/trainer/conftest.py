from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import running_service
from tests.trainer.worlds import corpus_for


@pytest.fixture(scope="session")
def service_url(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[str]:
    """A running service whose corpora `wiki` and `with-topk` fit the tiny model; each test uses a run of its own."""
    root = tmp_path_factory.mktemp("service")
    corpus_for(tiny_model, root)
    corpus_for(tiny_model, root, "with-topk", topk=4)
    with running_service(root) as (base_url, _):
        yield base_url
