"""Journals that releases before this one wrote: they fold to what those releases knew, and go on as they would have.

Each is named by the commit of its release; `tests.ledger.stored_journal` says how it was written.
"""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from replay_service.ledger import audit
from replay_service.testing import replay_service
from tests.ledger.stored_journal import RUNS, known_of
from tests.ledger.worlds import open_journal

FOLDER = Path(__file__).parent / "journals"
RELEASES = sorted(each.stem for each in FOLDER.glob("*.sql"))


def agrees(found: Any, expected: Any) -> bool:
    """Whether all is alike, up to the last digits of numbers that are not whole."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(agrees(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(agrees, found, expected))
    return bool(found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected))


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database(release: str, tmp_path: Path) -> Path:
    place = tmp_path / "journal.db"
    connection = sqlite3.connect(place)
    connection.executescript((FOLDER / f"{release}.sql").read_text())
    connection.close()
    return place


@pytest.mark.parametrize("has_snapshots", [True, False], ids=["with snapshots", "events alone"])
def test_a_journal_of_an_earlier_release_goes_on_as_it_would_have_there(
    release: str, database: Path, has_snapshots: bool
) -> None:
    with open_journal(database) as journal:
        if not has_snapshots:
            with journal.engine.begin() as connection:
                connection.execute(text("DELETE FROM snapshots"))
        verdicts = [audit.verify(journal, record) for record in journal.runs()]
    assert all(each.num_events > 15 and not (each.wrong_snapshots or each.missing_events) for each in verdicts)
    with replay_service(settings={"database_url": f"sqlite:///{database}"}) as service, service.client() as client:
        found = {run: known_of(client, run) for run in RUNS}
    assert agrees(found, json.loads((FOLDER / f"{release}.json").read_text()))


def test_there_are_journals_of_the_releases_before() -> None:
    assert len(RELEASES) >= 2
