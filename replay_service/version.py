"""`--version` of the commands."""

import typer

from replay_service import __version__


def say_version(is_asked: bool) -> None:
    """Print the version of the package and end."""
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit
