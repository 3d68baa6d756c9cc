"""`replay-service ingest`: shards in, a corpus out."""

from dataclasses import fields
from typing import Annotated, Any, Final

import typer

from replay_service.cli.shared import ConfigOption, RootOption, console, errors_as_messages, read_settings
from replay_service.corpus.ingest.settings import NO_OPTIONS, OPTION_DEFAULTS, IngestJob, IngestSettings, column_option
from replay_service.corpus.shards.documents import Columns
from replay_service.sampling.bounds import description_of
from replay_service.setting_options import options_of, with_options

OPTION_NAMES: Final = {
    "num_clusters": "clusters",
    "num_quantiles": "quantiles",
    "num_scorers": "scorers",
    "topk": "store_topk",
}
"""Options that have another name than their field."""

_FIELD_NAMES: Final = {option: name for name, option in OPTION_NAMES.items()}
_OPTIONS: Final = [
    *options_of(
        Columns, names={each.name: column_option(each.name) for each in fields(Columns)}, defaults=OPTION_DEFAULTS
    ),
    *options_of(IngestJob, leave_out={"settings"}, defaults={"poll_s": 30.0}),
    *options_of(IngestSettings, leave_out=NO_OPTIONS | {"source"}, names=OPTION_NAMES),
]


@with_options(_OPTIONS)
def ingest(
    source: Annotated[str, typer.Argument(help=description_of(IngestSettings, "source"))],
    corpus: Annotated[str, typer.Option(help="Name of the corpus to make, or to bring what is new into.")],
    root: RootOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on looking for new shards, until SIGTERM or Ctrl-C.")
    ] = False,
    config: ConfigOption = None,
    **options: Any,
) -> None:
    """Turn shards of pretraining text, or of samples with a label, into a corpus to rehearse from, or add new shards.

    Tokenizes and packs the text, lets the base model score every row, and sorts the rows into strata. Each finished
    segment can be rehearsed from while the next is made. Stopped or killed at any moment and started again, it goes on
    where it was. With the setting `corpora_url`, the corpus is made in object storage.
    """
    with errors_as_messages():
        settings = read_settings(config, root=root)
        from replay_service.corpus.shards.listing import look_into, some_of

        found = look_into(source)  # a mistyped path shows before Ray starts, which takes seconds
        given = {_FIELD_NAMES.get(name, name): value for name, value in options.items()}
        wanted = IngestSettings.from_options(
            settings.ingest_folder.absolute(),
            corpus,
            {"source": source, "corpora_url": settings.corpora_url, **given},
        )
        from replay_service.corpus.ingest.job import run_job
        from replay_service.corpus.ingest.progress_line import ingest_progress

        with ingest_progress(console, f"ingest {corpus}") as on_progress:
            manifest = run_job(wanted, options["poll_s"] if follow else None, on_progress)
    tokens = f"{manifest.num_tokens:,} tokens, " if manifest.seq_len else ""
    console.print(
        f"corpus [bold]{corpus}[/bold]: {manifest.num_samples:,} samples, {tokens}"
        f"{len(manifest.groups)} groups x {manifest.num_quantiles} quantiles, "
        f"{manifest.num_set_aside:,} rows set aside, generation {manifest.generation}",
        soft_wrap=True,
    )
    if found.passed_over:
        num, files = len(found.passed_over), "file" if len(found.passed_over) == 1 else "files"
        console.print(f"passed over {num:,} {files}: {some_of(found.passed_over)}", soft_wrap=True, markup=False)
