from collections.abc import Iterator
from pathlib import Path

import pytest

from replay_service.corpus.reading.reader import Corpus
from replay_service.ledger.journal import Journal
from tests.ledger.worlds import made_corpus, open_journal, record_of


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind; tests that use it run on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    url: str = request.getfixturevalue("postgresql_database")
    return url


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus of random rows, two domains of two quantiles; nothing writes to it."""
    return made_corpus(tmp_path_factory.mktemp("corpora"))


@pytest.fixture
def journal_of_a_run(database_url: str) -> Iterator[Journal]:
    """A journal with the run `tuning`, just created."""
    with open_journal(database_url) as journal:
        journal.create_run(record_of())
        yield journal
