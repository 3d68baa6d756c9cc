"""`replay-service serve`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from replay_service.cli.shared import errors_as_messages, read_settings


def serve(
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; REPLAY_ variables override it.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the corpora and of the default journal.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (8400).")] = None,
    gateways: Annotated[
        int | None,
        typer.Option(help="Processes that serve batches (1); of several, another one owns the runs."),
    ] = None,
    database_url: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the journal (SQLite in root).")] = None,
    allow_unauthenticated: Annotated[
        bool | None,
        typer.Option("--allow-unauthenticated", help="Listen beyond loopback although there are no tokens."),
    ] = None,
    tokens_file: Annotated[
        Path | None, typer.Option(help="File of the tokens that callers must have (tokens.toml in root).")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file of the certificate to serve HTTPS by.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's private key.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve rehearsal batches over HTTP until SIGTERM or Ctrl-C."""
    with errors_as_messages():
        settings = read_settings(
            config,
            root=root,
            host=host,
            port=port,
            gateways=gateways,
            database_url=database_url,
            allow_unauthenticated=allow_unauthenticated,
            tokens_file=tokens_file,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            log_level=log_level,
        )
        if not (_has_tokens(settings) or settings.allow_unauthenticated or settings.listens_on_loopback):
            raise typer.BadParameter(
                f"{settings.host} is not a loopback address, and there are no tokens to ask callers for: make one with "
                "`replay-service token create`; or put the service behind something that asks who they are, and say "
                "--allow-unauthenticated",
                param_hint="--host",
            )
        from replay_service.gateway.serving import run_service

        run_service(settings)


def _has_tokens(settings: Any) -> bool:
    """Whether there are tokens to ask callers for; a tokens file must be a good one, wherever the service listens."""
    from replay_service.tokens import read_tokens

    return settings.asks_for_tokens and len(read_tokens(settings.tokens_path)) > 0
