"""`replay-service ingest`: shards in, a corpus out."""

from typing import Annotated, Literal

import typer

from replay_service.cli.shared import ConfigOption, RootOption, console, errors_as_messages, read_settings


def ingest(
    source: Annotated[
        str,
        typer.Argument(
            help="Parquet, JSON lines, Arrow, text, tar (WebDataset) or a dataset saved by Hugging Face; "
            "a file, a folder or a quoted glob ('web/**/*.parquet'); local or at s3://, gs://, hf:// or any fsspec URL."
        ),
    ],
    corpus: Annotated[str, typer.Option(help="Name of the corpus to make, or to bring what is new into.")],
    model: Annotated[
        str,
        typer.Option(
            help="The base model: a local folder or a Hugging Face hub name; to classify, also package.module:callable."
        ),
    ],
    root: RootOption = None,
    seq_len: Annotated[int, typer.Option(help="Tokens in a row.")] = 512,
    kind: Annotated[
        Literal["language", "classification"],
        typer.Option(help="language: every token is predicted. classification: a text or a tensor has a label."),
    ] = "language",
    inputs_column: Annotated[
        str | None, typer.Option(help="To classify: column that holds tensors, instead of a text.")
    ] = None,
    label_column: Annotated[str, typer.Option(help="To classify: column that holds the class, 0 and above.")] = "label",
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    tokens_column: Annotated[
        str | None, typer.Option(help="Column that holds ready-made token ids, instead of a text.")
    ] = None,
    domain_column: Annotated[
        str | None, typer.Option(help="Column that holds the domain; else the folder or file name tells.")
    ] = None,
    group_column: Annotated[
        str | None, typer.Option(help="Partition the corpus by the values of this column instead of by domain.")
    ] = None,
    clusters: Annotated[
        int, typer.Option(help="Partition it by so many clusters of what the base model makes of a row instead.")
    ] = 0,
    quantiles: Annotated[int, typer.Option(help="Strata in each group, by base loss.")] = 8,
    precision: Annotated[
        Literal["auto", "float32", "bf16"],
        typer.Option(help="Arithmetic of the scoring; auto takes the faster, to classify float32."),
    ] = "auto",
    bos: Annotated[
        Literal["auto", "never", "always"],
        typer.Option(
            help="Begin each document with the tokenizer's bos token, and each row that goes on with one; auto: as in "
            "the corpus, and in a new one if the tokenizer puts it before a text."
        ),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Rows that the base model scores at once.")] = 8,
    scorers: Annotated[int, typer.Option(help="Actors that hold the base model.")] = 1,
    gpus_per_scorer: Annotated[float, typer.Option(help="How much of a GPU each takes, where there are any.")] = 1.0,
    store_topk: Annotated[
        int, typer.Option(help="Keep so many of the base model's likeliest tokens a position, for distilled rehearsal.")
    ] = 0,
    rows_per_segment: Annotated[
        int, typer.Option(help="Rows of one segment; each finished one can be rehearsed from at once.")
    ] = 65_536,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on looking for new shards, until SIGTERM or Ctrl-C.")
    ] = False,
    poll_s: Annotated[float, typer.Option(min=0.1, help="With --follow: seconds between two looks.")] = 30.0,
    config: ConfigOption = None,
) -> None:
    """Turn shards of pretraining text, or of samples with a label, into a corpus to rehearse from, or add new shards.

    Tokenizes and packs the text, lets the base model score every row, and sorts the rows into strata. Each finished
    segment can be rehearsed from while the next is made. Stopped or killed at any moment and started again, it goes on
    where it was.
    """
    with errors_as_messages():
        settings = read_settings(config, root=root)
        from replay_service.corpus.shards.listing import look_into, some_of
        from replay_service.corpus.shards.sources import Columns

        found = look_into(source)  # a mistyped path shows before Ray starts, which takes seconds
        from replay_service.corpus.ingest.settings import IngestSettings

        wanted = IngestSettings(
            source=source,
            folder=settings.corpora.absolute(),
            name=corpus,
            model=model,
            seq_len=seq_len,
            columns=Columns(
                text_column,
                tokens_column,
                domain_column,
                group_column,
                inputs_column,
                label_column if kind == "classification" else None,
            ),
            num_quantiles=quantiles,
            num_clusters=clusters,
            precision=precision,
            batch_size=batch_size,
            num_scorers=scorers,
            gpus_per_scorer=gpus_per_scorer,
            topk=store_topk,
            rows_per_segment=rows_per_segment,
            kind=kind,
            bos=bos,
        )
        from replay_service.corpus.ingest.job import run_job
        from replay_service.progress import ingest_progress

        with ingest_progress(console, f"ingest {corpus}") as on_progress:
            manifest = run_job(wanted, poll_s if follow else None, on_progress)
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
