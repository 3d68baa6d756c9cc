"""`replay-service journal`: the audit."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from replay_service.cli.shared import (
    ConfigOption,
    DatabaseOption,
    RootOption,
    console,
    errors_as_messages,
    read_settings,
)

app = typer.Typer(help="Audit the journal of a service.", no_args_is_help=True)


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="The run to verify.")],
    config: ConfigOption = None,
    root: RootOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Fold a run's journal again from its first event and compare with every snapshot, byte for byte."""
    with errors_as_messages(), _open_journal(config, root, database_url) as journal:
        from replay_service.ledger import audit

        record = journal.run(run)
        verdict = audit.verify(journal, record)
    found = f"{verdict.num_events:,} events, {verdict.num_snapshots:,} snapshots"
    if not verdict.holds:
        console.print(
            f"[red]run {run} does not verify:[/red] {found}; snapshots that differ: {verdict.wrong_snapshots}, "
            f"missing events: {verdict.missing_events}",
            soft_wrap=True,
        )
        sys.exit(1)
    console.print(f"run {run} verifies: {found}")


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="The run to export.")],
    parquet: Annotated[Path, typer.Option(help="File to write, one row a sample of an event.")],
    config: ConfigOption = None,
    root: RootOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Write a run's journal as a Parquet file for analysts."""
    with errors_as_messages(), _open_journal(config, root, database_url) as journal:
        from replay_service.ledger import audit

        num_rows = audit.export_parquet(journal, journal.run(run).run, parquet)
    console.print(f"{num_rows:,} rows in {parquet}", markup=False, soft_wrap=True)


@contextlib.contextmanager
def _open_journal(config: Path | None, root: Path | None, database_url: str | None) -> Iterator[Any]:
    """The journal of a service's settings; a service may run on them meanwhile."""
    from replay_service.ledger.database import open_database
    from replay_service.ledger.journal import Journal

    settings = read_settings(config, root=root, database_url=database_url)
    if settings.database_url is None and not (settings.root / "journal.sqlite").exists():
        raise FileNotFoundError(f"there is no journal in {settings.root}; name the service's folder with --root")
    journal = Journal(open_database(settings.journal_url))
    try:
        yield journal
    finally:
        journal.close()
