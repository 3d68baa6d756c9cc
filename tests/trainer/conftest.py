from collections.abc import Iterator
from pathlib import Path

import pytest

from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer import estimates
from replay_trainer.client import ReplayClient, RetryPolicy
from tests.support import running_service
from tests.trainer.plain_worlds import SEQ_LEN, VOCAB
from tests.trainer.worlds import corpus_for


@pytest.fixture(autouse=True)
def figures_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine leaves out no figure that a test looks for."""
    monkeypatch.setattr(estimates, "HASTY", RetryPolicy())


@pytest.fixture(scope="session")
def service_url(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[str]:
    """A running service whose corpora `wiki` and `with-topk` fit the tiny model; each test uses a run of its own."""
    root = tmp_path_factory.mktemp("service")
    corpus_for(tiny_model, root)
    corpus_for(tiny_model, root, "with-topk", topk=4)
    with running_service(root) as (base_url, _):
        yield base_url


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    """A service in this process, whose corpus has the rows of `tests.trainer.plain_worlds`."""
    with replay_service(seq_len=SEQ_LEN, vocab_size=VOCAB) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: ServiceUnderTest) -> Iterator[ReplayClient]:
    with service.client() as found:
        yield found
