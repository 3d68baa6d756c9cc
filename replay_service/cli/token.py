"""`replay-service token`: who may call the service."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from replay_service.cli.shared import ConfigOption, RootOption, TokensOption, console, errors_as_messages, read_settings
from replay_service.names import NAME_RULE, is_name

app = typer.Typer(help="Make, list and revoke the tokens that callers of the service must have.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="Name of the token, which says in the log who has done what.")]
_answers = Console()


@app.command()
def create(
    name: NameArgument,
    scope: Annotated[
        Literal["read", "train", "admin"],
        typer.Option(help="read: look. train: also create and drive runs. admin: also start and stop ingests."),
    ],
    run: Annotated[
        list[str] | None, typer.Option(help="The only run that it may touch; say it again for more. Default: all.")
    ] = None,
    expires_days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Days that it is good for.")] = None,
    tokens_file: TokensOption = None,
    config: ConfigOption = None,
    root: RootOption = None,
) -> None:
    """Make a token and print it, this once; the file keeps its hash alone.

    A service that has tokens takes it at once. One that was started without any asks for tokens when it is started
    again.
    """
    _check_names([name], "NAME")
    _check_names(run or [], "--run")
    with errors_as_messages():
        from replay_service.tokens import TokenEntry, add_token, hash_of, new_token

        path, token, now = _path(tokens_file, config, root), new_token(), datetime.now(UTC)
        entry = TokenEntry(
            name=name,
            sha256=hash_of(token),
            scope=scope,
            runs=tuple(run) if run else None,
            created_at=now,
            expires_at=None if expires_days is None else now + timedelta(days=expires_days),
        )
        add_token(path, entry)
    console.print(f"token {name} is in {path}; it is shown this once:", soft_wrap=True, highlight=False)
    typer.echo(token)


@app.command("list")
def list_tokens(tokens_file: TokensOption = None, config: ConfigOption = None, root: RootOption = None) -> None:
    """List the tokens: what each is good for, and until when."""
    with errors_as_messages():
        from replay_service.tokens import read_tokens

        entries = read_tokens(_path(tokens_file, config, root))
    table = Table("name", "scope", "runs", "created", "expires", box=None)
    now = datetime.now(UTC)
    for each in entries:
        expires = "never" if each.expires_at is None else f"{each.expires_at:%Y-%m-%d %H:%M}"
        table.add_row(
            each.name,
            each.scope,
            "all" if each.runs is None else ", ".join(each.runs),
            f"{each.created_at:%Y-%m-%d %H:%M}",
            f"{expires} (expired)" if each.is_expired(now) else expires,
        )
    _answers.print(table)


@app.command()
def revoke(
    name: NameArgument, tokens_file: TokensOption = None, config: ConfigOption = None, root: RootOption = None
) -> None:
    """Take a token out of force; a running service refuses it from its next request on."""
    with errors_as_messages():
        from replay_service.tokens import revoke_token

        path = _path(tokens_file, config, root)
        revoke_token(path, name)
    console.print(f"token {name} is revoked", soft_wrap=True, highlight=False)


def _path(tokens_file: Path | None, config: Path | None, root: Path | None) -> Path:
    return read_settings(config, root=root, tokens_file=tokens_file).tokens_path


def _check_names(names: list[str], what: str) -> None:
    for each in names:
        if not is_name(each):
            raise typer.BadParameter(f"{each!r} is no name: {NAME_RULE}", param_hint=what)
