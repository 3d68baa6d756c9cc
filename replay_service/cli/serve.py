"""`replay-service serve`."""

from typing import Any, Final

import typer

from replay_service.cli.shared import ConfigOption, errors_as_messages, read_settings
from replay_service.setting_options import settings_options, with_options
from replay_service.settings import ServiceSettings

FLAGS: Final = (
    "root",
    "host",
    "port",
    "gateways",
    "database_url",
    "cluster",
    "cluster_secret_file",
    "owner_host",
    "owner_port",
    "owner_address",
    "allow_unauthenticated",
    "tokens_file",
    "tls_certificate",
    "tls_key",
    "log_level",
)
"""Settings that are often given on the command line; a file or the environment holds the others."""


@with_options(settings_options(ServiceSettings, FLAGS))
def serve(config: ConfigOption = None, **flags: Any) -> None:
    """Serve rehearsal batches over HTTP until SIGTERM or Ctrl-C."""
    with errors_as_messages():
        settings = read_settings(config, **flags)
        check_access(settings)
        from replay_service.gateway.serving import run_service

        run_service(settings)


def check_access(settings: ServiceSettings) -> None:
    """Raises BadParameter when the service would answer other machines without asking who they are."""
    if not (_has_tokens(settings) or settings.allow_unauthenticated or settings.listens_on_loopback):
        raise typer.BadParameter(
            f"{settings.host} is not a loopback address, and there are no tokens to ask callers for: make one with "
            "`replay-service token create`; or put the service behind something that asks who they are, and say "
            "--allow-unauthenticated",
            param_hint="--host",
        )


def _has_tokens(settings: ServiceSettings) -> bool:
    """Whether there are tokens to ask callers for; a tokens file must be a good one, wherever the service listens."""
    from replay_service.tokens import read_tokens

    return settings.asks_for_tokens and len(read_tokens(settings.tokens_path)) > 0
