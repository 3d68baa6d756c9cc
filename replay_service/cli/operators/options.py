"""What all commands that ask a service share: its address, the form of answers, and how often to look again."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from replay_service.cli.operators.client import CA_FILE_VARIABLE, ServiceClient, read_token
from replay_service.cli.shared import errors_as_messages

_terminal: Final = Console(markup=False, emoji=False, highlight=False)
_file: Final = Console(markup=False, emoji=False, highlight=False, width=10_000)
"""For what no terminal shows: a file has no border to keep to."""

UrlOption = Annotated[
    str, typer.Option("--url", envvar="REPLAY_URL", help="URL of the service; several have commas between them.")
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="REPLAY_TOKEN_FILE",
        help="File that holds a token of the service. By default the environment variable REPLAY_TOKEN holds it.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, as the service gave it.")]
RunArgument = Annotated[str, typer.Argument(help="Name of the run.")]
EveryOption = Annotated[float, typer.Option("--every", min=0.1, max=3600, help="Seconds between two looks.")]
TimesOption = Annotated[
    int | None, typer.Option("--times", min=1, help="End after so many looks. By default, at Ctrl-C.")
]


@contextlib.contextmanager
def asked(url: str, token_file: Path | None) -> Iterator[ServiceClient]:
    """A client of the service; what goes wrong ends with one message, and Ctrl-C with none."""
    with errors_as_messages():
        ca_file = os.environ.get(CA_FILE_VARIABLE)
        with ServiceClient(url, read_token(token_file), Path(ca_file) if ca_file else None) as client:
            try:
                yield client
            except KeyboardInterrupt:
                raise typer.Exit(130) from None
            except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(0) from None


def say(answer: RenderableType) -> None:
    """Print an answer. Names and texts in it are foreign; markup in them has no effect."""
    (_terminal if _terminal.is_terminal else _file).print(answer)


def print_json(answer: Any) -> None:
    """One JSON value on a line of its own."""
    typer.echo(json.dumps(answer))


def look_again(
    see: Callable[[], Any], show: Callable[[Any], RenderableType], every_s: float, times: int | None, as_json: bool
) -> None:
    """Show what `see` gives again and again: in place on a terminal, else one after the other."""
    if as_json or not _terminal.is_terminal:
        for found in _looks(see, every_s, times):
            print_json(found) if as_json else say(show(found))
        return
    with Live(console=_terminal, auto_refresh=False) as live:
        for found in _looks(see, every_s, times):
            live.update(show(found), refresh=True)


def _looks(see: Callable[[], Any], every_s: float, times: int | None) -> Iterator[Any]:
    number = 0
    while True:
        yield see()
        number += 1
        if number == times:
            return
        time.sleep(every_s)
