"""`replay-service serve`."""

import ipaddress
from pathlib import Path
from typing import Annotated

import typer

from replay_service.cli.shared import errors_as_messages, read_settings


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
    with errors_as_messages():
        settings = read_settings(
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
