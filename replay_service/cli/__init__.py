"""The command line `replay-service`: make a corpus, serve it, look at runs, see it work, plan a ratio."""

from typing import Annotated

import typer

from replay_service.cli import config, corpus, journal, token
from replay_service.cli.demo import demo
from replay_service.cli.ingest import ingest
from replay_service.cli.operators import runs
from replay_service.cli.operators.look import events, samples, top
from replay_service.cli.plan import plan
from replay_service.cli.ray_service import down, status, up
from replay_service.cli.serve import serve
from replay_service.version import say_version

app = typer.Typer(
    help="Rehearse the right pretraining samples while fine-tuning, so that the model does not forget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=say_version, help="Say which.")] = False,
) -> None:
    """Rehearse the right pretraining samples while fine-tuning, so that the model does not forget."""


for command in (ingest, serve, plan, demo, events, samples, top, up, status, down):
    app.command()(command)
app.add_typer(runs.app, name="runs")
app.add_typer(config.app, name="config")
app.add_typer(corpus.app, name="corpus")
app.add_typer(journal.app, name="journal")
app.add_typer(token.app, name="token")


def main() -> None:
    app()
