import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import create_engine, text

from replay_service.corpus.reading.reader import Corpus
from replay_service.ledger import audit
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import OwnerLimits, RunOwner
from replay_service.sampling.events import Adjusted, Adopted, Closed, Configured
from tests.ledger.worlds import ids_of, losses_of, record_of, write


@pytest.fixture
def journal(journal_of_a_run: Journal) -> Journal:
    return journal_of_a_run


def a_long_run(journal: Journal, corpus: Corpus) -> RunOwner:
    """Twenty steps, reports, a change, and a rewind from step 15 to step 9; a snapshot every five events."""
    owner = RunOwner(journal, "tuning", lambda _: corpus, OwnerLimits(snapshot_every=5))
    for step in range(16):
        (plan,) = owner.window(step, 1, 100).plans
        owner.report(losses_of(step, ids_of(plan)))
    owner.configure({"floor": 0.3})
    owner.rewind(9)
    owner.window(10, 10, 100)
    owner.close()
    return owner


def execute(database_url: str, statement: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_a_journal_verifies(journal: Journal, corpus: Corpus) -> None:
    a_long_run(journal, corpus)
    verdict = audit.verify(journal, record_of())
    assert verdict.holds
    assert verdict.num_events == journal.num_events("tuning") == 1 + 16 + 16 + 1 + 1 + 10 + 1
    assert verdict.num_snapshots >= 5


def test_a_snapshot_that_was_tampered_with_is_found(journal: Journal, corpus: Corpus, database_url: str) -> None:
    a_long_run(journal, corpus)
    seq = journal.snapshots("tuning")[1].seq
    other = "(SELECT state FROM snapshots AS other WHERE other.seq > snapshots.seq ORDER BY seq LIMIT 1)"
    execute(database_url, f"UPDATE snapshots SET state = {other} WHERE seq = {seq}")
    assert audit.verify(journal, record_of()).wrong_snapshots == [seq]


def test_an_event_that_was_taken_out_is_found(journal: Journal, corpus: Corpus, database_url: str) -> None:
    a_long_run(journal, corpus)
    execute(database_url, "DELETE FROM events WHERE seq = 3")
    verdict = audit.verify(journal, record_of())
    assert verdict.missing_events == [3]
    assert not verdict.holds


def test_an_empty_journal_verifies(journal: Journal, corpus: Corpus) -> None:
    assert audit.verify(journal, record_of()) == audit.Verdict(1, 0, [], [])


def test_a_journal_is_exported_a_row_a_sample(journal: Journal, corpus: Corpus, tmp_path: Path) -> None:
    a_long_run(journal, corpus)
    num_rows = audit.export_parquet(journal, "tuning", tmp_path / "journal.parquet")
    table = pq.read_table(tmp_path / "journal.parquet")
    assert len(table) == num_rows
    kinds = table["kind"].to_pylist()
    assert {kind: kinds.count(kind) for kind in ("configured", "rewound", "closed")} == dict.fromkeys(
        ("configured", "rewound", "closed"), 1
    )
    assert kinds.count("planned") == 4 * (16 + 10)
    losses = [row["loss_nats"] for row in table.to_pylist() if row["kind"] == "reported"]
    assert set(losses) == {2.5}
    assert table["seq"].to_pylist() == sorted(table["seq"].to_pylist())


def test_an_export_holds_the_sizes_of_what_the_run_began_on_and_of_what_it_adopted(
    journal: Journal, tmp_path: Path
) -> None:
    write(journal, "tuning", 1, [Adopted(-1, 2, (20, 25, 20, 20, 7, 8)), Closed(-1)])
    audit.export_parquet(journal, "tuning", tmp_path / "journal.parquet")
    table = pq.read_table(tmp_path / "journal.parquet", columns=["kind", "generation", "sizes"])
    assert table.to_pylist() == [
        {"kind": "created", "generation": 1, "sizes": [20, 20, 20, 20]},
        {"kind": "adopted", "generation": 2, "sizes": [20, 25, 20, 20, 7, 8]},
        {"kind": "closed", "generation": None, "sizes": None},
    ]


def test_an_export_says_when_what_was_changed_and_why(journal: Journal, tmp_path: Path) -> None:
    changed = record_of(floor=0.4).config
    write(journal, "tuning", 1, [Configured(-1, changed), Adjusted(-1, "0.05", "too much is forgotten")])
    audit.export_parquet(journal, "tuning", tmp_path / "journal.parquet")
    rows = pq.read_table(tmp_path / "journal.parquet").to_pylist()
    assert [each["config"] for each in rows] == [record_of().config.to_json(), changed.to_json(), None]
    assert [each["change"] and json.loads(each["change"]) for each in rows] == [
        None,
        {"floor": {"before": 0.1, "after": 0.4}},
        {"injection_ratio": {"before": "0.25", "after": "0.05"}},
    ]
    assert (rows[2]["injection_ratio"], rows[2]["reason"]) == ("0.05", "too much is forgotten")
    times = [round(each["committed_at"].timestamp() * 1000) for each in rows]
    assert times == [each.committed_at for each in journal.entries("tuning")]
