"""`replay-service corpus`: look into a corpus, and bring it to where it is served from."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from replay_service.cli.operators.client import DEFAULT_URL
from replay_service.cli.operators.options import JsonOption, TokenFileOption, UrlOption, asked, print_json, say
from replay_service.cli.operators.pictures import corpora_table
from replay_service.cli.operators.words import visible
from replay_service.cli.shared import ConfigOption, RootOption, console, errors_as_messages, read_settings

app = typer.Typer(help="Look into a corpus, or copy it to object storage.", no_args_is_help=True)

CorpusArgument = Annotated[str, typer.Argument(help="Name of the corpus.")]
_answers = Console(markup=False, emoji=False, highlight=False)
"""The text of a corpus is foreign; markup and control characters in it have no effect."""
_file = Console(markup=False, emoji=False, highlight=False, width=10_000)
"""For tables that no terminal shows: a file has no border to keep to."""


@app.command("list")
def list_corpora(url: UrlOption = DEFAULT_URL, token_file: TokenFileOption = None, as_json: JsonOption = False) -> None:
    """List the corpora of a service that runs."""
    with asked(url, token_file) as service:
        found = service.get("/v1/corpora")
        if as_json:
            print_json(found)
        else:
            say(corpora_table(found["corpora"]))


@app.command()
def describe(
    corpus: CorpusArgument,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the base losses of each domain into this file (.png, .svg, .pdf).")
    ] = None,
    root: RootOption = None,
    config: ConfigOption = None,
) -> None:
    """Describe a corpus: samples, tokens and base losses of each domain, how full its strata are."""
    with errors_as_messages():
        manifest = _open(corpus, root, config).manifest
        from replay_service.corpus.describe import content_of, domain_rows, draw_losses, group_rows

        _answers.print(
            f"corpus {corpus}, generation {manifest.generation}: {manifest.num_samples:,} samples, "
            f"{manifest.num_tokens:,} tokens of {manifest.num_documents:,} documents, {manifest.num_shards:,} shards; "
            f"model {manifest.model}, {content_of(manifest)}, {manifest.precision}",
            soft_wrap=True,
        )
        head = ["domain", "samples", "tokens", "mean nats", "10 %", "median", "90 %", "0 to 10 nats"]
        _print_table(head, domain_rows(manifest))
        strata = [f"q{quantile}" for quantile in range(manifest.num_quantiles)]
        _print_table([manifest.partition_by, "since", *strata], group_rows(manifest))
        for reason, num in sorted(manifest.set_aside.items()):
            _answers.print(f"{num:,} rows set aside: {reason}")
        if picture is not None:
            draw_losses(manifest, picture)
            console.print(f"picture in {picture}", markup=False, soft_wrap=True)


@app.command()
def sample(
    corpus: CorpusArgument,
    stratum: Annotated[str, typer.Option(help="Name of the stratum, as web/q3; `corpus describe` lists them.")],
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many samples.")] = 3,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the choice of samples.")] = 0,
    root: RootOption = None,
    config: ConfigOption = None,
) -> None:
    """Show the text of some samples of a stratum, with their base losses."""
    with errors_as_messages():
        from replay_service.corpus.describe import sample_texts

        for each in sample_texts(_open(corpus, root, config), stratum, count, seed):
            _answers.rule(f"sample {each.sample_id}, {each.num_tokens} tokens, {each.base_loss_nats:.3f} nats")
            _answers.print(visible(each.text), soft_wrap=True)


@app.command()
def upload(
    corpus: CorpusArgument,
    url: Annotated[str, typer.Argument(help="Where the corpora shall be: s3://bucket/corpora, gs://, any fsspec URL.")],
    root: RootOption = None,
    config: ConfigOption = None,
) -> None:
    """Copy a corpus to object storage, or bring the copy there up to date.

    The manifest goes last, so that whoever reads there sees whole generations. Stopped, it goes on where it was.
    """
    with errors_as_messages():
        settings = read_settings(config, root=root)
        from replay_service.corpus.upload import upload as copy
        from replay_service.progress import progress_bar

        with progress_bar(console) as bar:
            task = bar.add_task(escape(f"upload {corpus}"), total=None, note="")
            num_copied = copy(
                settings.corpora / corpus, url, lambda done, total: bar.update(task, completed=done, total=total)
            )
    console.print(f"{num_copied:,} segments copied", soft_wrap=True)


def _open(corpus: str, root: Path | None, config: Path | None) -> Any:
    from replay_service.corpus.reading.reader import CorpusStore

    settings = read_settings(config, root=root)
    return CorpusStore(settings.corpora_place, settings.block_cache_bytes).get(corpus)


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    table = Table(box=None)
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(visible, row))
    (_answers if _answers.is_terminal else _file).print(table)
