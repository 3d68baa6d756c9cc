"""`replay-service demo`."""

from pathlib import Path
from typing import Annotated

import typer

from replay_service.cli.shared import errors_as_messages, read_settings


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
    """See it work: fine-tune a real model without rehearsal and with two kinds of it, and compare what it forgets."""
    with errors_as_messages():
        from replay_service.demo import story

        if prepare_only:
            settings = read_settings(None, root=root)
            story.prepare_only(
                model=model,
                folder=folder,
                corpora=settings.ingest_folder,
                corpora_url=settings.corpora_url,
                fast=fast,
                service_url=service_url,
            )
        else:
            story.tell(model=model, folder=folder, fast=fast, hold=hold)
