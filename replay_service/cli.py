"""The command line `replay-service`: make a corpus, serve it, see it work."""

import contextlib
import ipaddress
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console

from replay_service.errors import ReplayError

app = typer.Typer(
    help="Rehearse the right pretraining samples while fine-tuning, so that the model does not forget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
journal_app = typer.Typer(help="Audit the journal of a service.", no_args_is_help=True)
app.add_typer(journal_app, name="journal")
console = Console(stderr=True)


@app.command()
def ingest(
    source: Annotated[Path, typer.Argument(help="A shard or a folder of them: .parquet, .jsonl, .jsonl.gz or .txt.")],
    corpus: Annotated[str, typer.Option(help="Name of the corpus to make.")],
    model: Annotated[str, typer.Option(help="The base model: a local folder or a Hugging Face hub name.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the service's data.")] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens in a row.")] = 512,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    domain_column: Annotated[
        str | None, typer.Option(help="Column that holds the domain; else the folder or file name tells.")
    ] = None,
    quantiles: Annotated[int, typer.Option(help="Strata in each domain, by base loss.")] = 8,
    precision: Annotated[
        Literal["auto", "float32", "bf16"], typer.Option(help="Arithmetic of the scoring; auto takes the faster.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Rows that the base model scores at once.")] = 8,
    scorers: Annotated[int, typer.Option(help="Actors that hold the base model.")] = 1,
    config: Annotated[Path | None, typer.Option(help="TOML file of the service's settings.")] = None,
) -> None:
    """Turn shards of pretraining text into a corpus to rehearse from.

    Tokenizes and packs the text, lets the base model score every row, and sorts the rows into strata. Killed at any
    moment and started again, it goes on where it was.
    """
    with _errors_as_messages():
        settings = _settings(config, root=root)
        from replay_service.corpus.sources import Columns, find_shards

        find_shards(source)  # a mistyped path shows before Ray starts, which takes seconds
        from replay_service.corpus.ingest import IngestSettings
        from replay_service.corpus.ingest import ingest as run_ingest
        from replay_service.progress import ingest_progress
        from replay_service.ray_session import start_ray

        wanted = IngestSettings(
            source=source,
            folder=settings.corpora.absolute(),
            name=corpus,
            model=model,
            seq_len=seq_len,
            columns=Columns(text_column, domain_column),
            num_quantiles=quantiles,
            precision=precision,
            batch_size=batch_size,
            num_scorers=scorers,
        )
        start_ray()
        with ingest_progress(console, f"ingest {corpus}") as on_progress:
            manifest = run_ingest(wanted, on_progress)
    console.print(
        f"corpus [bold]{corpus}[/bold]: {manifest.num_samples:,} samples, {manifest.num_tokens:,} tokens, "
        f"{len(manifest.domains)} domains x {manifest.num_quantiles} quantiles, "
        f"{manifest.num_set_aside:,} rows set aside",
        soft_wrap=True,
    )


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; REPLAY_ variables override it.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the corpora and of the default journal.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (8400).")] = None,
    database_url: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the journal (SQLite in root).")] = None,
    allow_unauthenticated: Annotated[
        bool | None, typer.Option("--allow-unauthenticated", help="Listen beyond loopback although nobody logs in.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve rehearsal batches over HTTP until SIGTERM or Ctrl-C."""
    with _errors_as_messages():
        settings = _settings(
            config,
            root=root,
            host=host,
            port=port,
            database_url=database_url,
            allow_unauthenticated=allow_unauthenticated,
            log_level=log_level,
        )
        if not (settings.allow_unauthenticated or _is_loopback(settings.host)):
            raise typer.BadParameter(
                f"{settings.host} is not a loopback address, and the service does not ask callers who they are; put it "
                "behind something that does and say --allow-unauthenticated",
                param_hint="--host",
            )
        from replay_service.gateway.server import run_server

        run_server(settings)


@app.command()
def demo(
    model: Annotated[
        str | None, typer.Option(help="Base model: a local folder or hub name; by default SmolLM2-135M, fetched once.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the demo keeps what it makes.")] = Path("replay-demo"),
    fast: Annotated[bool, typer.Option("--fast", help="The same path with less text and fewer steps.")] = False,
    hold: Annotated[bool, typer.Option("--hold", help="Keep the service up at the end, until Ctrl-C.")] = False,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Make the corpus and write the jobs, for a trainer elsewhere.")
    ] = False,
    service_url: Annotated[
        str, typer.Option(help="With --prepare-only: where that trainer finds the service.")
    ] = "http://127.0.0.1:8400",
    root: Annotated[Path | None, typer.Option(help="With --prepare-only: folder of the service's data.")] = None,
) -> None:
    """See it work: fine-tune a real model with and without rehearsal, and compare what it forgets."""
    with _errors_as_messages():
        from replay_service.demo import story

        if prepare_only:
            corpora = _settings(None, root=root).corpora
            story.prepare_only(model=model, folder=folder, corpora=corpora, fast=fast, service_url=service_url)
        else:
            story.tell(model=model, folder=folder, fast=fast, hold=hold)


@journal_app.command()
def verify(
    run: Annotated[str, typer.Argument(help="The run to verify.")],
    config: Annotated[Path | None, typer.Option(help="TOML file of the service's settings.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the corpora and of the default journal.")] = None,
    database_url: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the journal (SQLite in root).")] = None,
) -> None:
    """Fold a run's journal again from its first event and compare with every snapshot, byte for byte."""
    with _errors_as_messages(), _open_journal(config, root, database_url) as (journal, corpora):
        from replay_service.ledger import audit

        record = journal.run(run)
        verdict = audit.verify(journal, record, corpora.get(record.corpus).partition)
    found = f"{verdict.num_events:,} events, {verdict.num_snapshots:,} snapshots"
    if not verdict.holds:
        console.print(
            f"[red]run {run} does not verify:[/red] {found}; snapshots that differ: {verdict.wrong_snapshots}, "
            f"missing events: {verdict.missing_events}",
            soft_wrap=True,
        )
        sys.exit(1)
    console.print(f"run {run} verifies: {found}")


@journal_app.command()
def export(
    run: Annotated[str, typer.Argument(help="The run to export.")],
    parquet: Annotated[Path, typer.Option(help="File to write, one row a sample of an event.")],
    config: Annotated[Path | None, typer.Option(help="TOML file of the service's settings.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the corpora and of the default journal.")] = None,
    database_url: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the journal (SQLite in root).")] = None,
) -> None:
    """Write a run's journal as a Parquet file for analysts."""
    with _errors_as_messages(), _open_journal(config, root, database_url) as (journal, _):
        from replay_service.ledger import audit

        num_rows = audit.export_parquet(journal, journal.run(run).run, parquet)
    console.print(f"{num_rows:,} rows in {parquet}", soft_wrap=True)


def main() -> None:
    app()


@contextlib.contextmanager
def _open_journal(config: Path | None, root: Path | None, database_url: str | None) -> Iterator[tuple[Any, Any]]:
    """The journal and the corpora of a service's settings; a service may run on them meanwhile."""
    from replay_service.corpus.reader import CorpusStore
    from replay_service.ledger.database import open_database
    from replay_service.ledger.journal import Journal

    settings = _settings(config, root=root, database_url=database_url)
    if settings.database_url is None and not (settings.root / "journal.sqlite").exists():
        raise FileNotFoundError(f"there is no journal in {settings.root}; name the service's folder with --root")
    journal = Journal(open_database(settings.journal_url))
    try:
        yield journal, CorpusStore(settings.corpora_place, settings.block_cache_bytes)
    finally:
        journal.close()


def _settings(config: Path | None, **flags: Any) -> Any:
    from replay_service.settings import load_settings

    try:
        return load_settings(config, **flags)
    except ValidationError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--config") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def _errors_as_messages() -> Iterator[None]:
    """A mistake of the user's ends with one message and exit code 2, not with a traceback."""
    try:
        yield
    except ReplayError as error:
        console.print(f"[red]{error.title}:[/red] {error.detail}", highlight=False)
        sys.exit(2)
    except ValidationError as error:
        for each in error.errors():
            console.print(f"[red]setting {'.'.join(map(str, each['loc']))}:[/red] {each['msg']}", highlight=False)
        sys.exit(2)
    except FileNotFoundError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(2)
    except ModuleNotFoundError as error:
        console.print(
            f"[red]error:[/red] {error.name} is not installed; "
            "install the extra that this command needs: pip install 'replay-service\\[demo]'",
            highlight=False,
        )
        sys.exit(2)
