"""What every command needs: the settings, and a mistake's message instead of a traceback."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from replay_service.errors import ReplayError
from replay_service.extras import missing_package
from replay_service.stopping import Stopped

console = Console(stderr=True, emoji=False)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file of the service's settings.")]
RootOption = Annotated[Path | None, typer.Option("--root", help="Folder of the service's data.")]
DatabaseOption = Annotated[
    str | None, typer.Option("--database-url", help="SQLAlchemy URL of the journal (SQLite in root).")
]


def read_settings(config: Path | None, **flags: Any) -> Any:
    """The service's settings: defaults, then the file, then the environment, then the flags that are not None."""

    from replay_service.settings import load_settings

    try:
        return load_settings(config, **flags)
    except ValidationError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--config") from error


@contextlib.contextmanager
def errors_as_messages() -> Iterator[None]:
    """A mistake of the user's ends with one message and exit code 2, not with a traceback; a signal with 128 + it."""
    try:
        yield
    except Stopped as stopped:
        console.print("stopped; run the same command again to go on", highlight=False)
        sys.exit(stopped.exit_code)
    except ReplayError as error:
        console.print(f"[red]{error.title}:[/red] {escape(error.detail)}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except ValidationError as error:
        for each in error.errors():
            place = f"setting {'.'.join(map(str, each['loc']))}" if each["loc"] else "settings"
            console.print(f"[red]{escape(place)}:[/red] {escape(each['msg'])}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except FileNotFoundError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        console.print(f"[red]error:[/red] {escape(missing_package(error, 'corpus'))}", highlight=False, soft_wrap=True)
        sys.exit(2)
