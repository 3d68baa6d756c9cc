"""`replay-service runs`: list runs, look at one, change its settings."""

from typing import Annotated

import typer

from replay_service.cli.operators.changes import differences, parse_changes
from replay_service.cli.operators.client import DEFAULT_URL, run_path
from replay_service.cli.operators.look import look_at
from replay_service.cli.operators.options import (
    EveryOption,
    JsonOption,
    RunArgument,
    TimesOption,
    TokenFileOption,
    UrlOption,
    asked,
    look_again,
    print_json,
    say,
)
from replay_service.cli.operators.pictures import run_picture, runs_table, table_of
from replay_service.sampling.run_config import RunConfig

app = typer.Typer(help="List the runs of a service, look at one, change its settings.", invoke_without_command=True)


@app.callback()
def runs(
    context: typer.Context,
    state: Annotated[
        str | None,
        typer.Option(help="Only these, with commas: waiting, running, stale, finished, closed, damaged."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    every: EveryOption = 2.0,
    times: TimesOption = None,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs of a service, look at one (`show`), change its settings (`set`)."""
    if context.invoked_subcommand is not None:
        _check_no_options(context)
        return
    with asked(url, token_file) as service:
        look_again(lambda: list(service.runs(state=state)), runs_table, every, times if watch else 1, as_json)


def _check_no_options(context: typer.Context) -> None:
    """What is said before the name of a command would be lost."""
    given = [name for name in context.params if _is_typed(context, name)]
    if given:
        raise typer.BadParameter(
            f"options stand after the command: runs {context.invoked_subcommand} ... --{given[0].replace('_', '-')} ..."
        )


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@app.command()
def show(
    run: RunArgument,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a run is: its state, what it forgets and where, its ratio, its reports, and what to do."""
    with asked(url, token_file) as service:
        look = look_at(service, run)
        if as_json:
            print_json(look.stats)
        else:
            say(run_picture(look))


@app.command("set")
def set_settings(
    run: RunArgument,
    changes: Annotated[
        list[str], typer.Argument(help="NAME=VALUE of each setting to change, such as injection_ratio=0.02.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change how a run samples, from its first step without a plan. Shows what would change, and asks."""
    with asked(url, token_file) as service:
        found = service.of_run(run)
        present = RunConfig.from_dict(found["config"])
        wanted = parse_changes(changes, present)
        rows = list(differences(present, present.changed(**wanted)))
        if not as_json:
            _preview(run, found["next_step"], rows)
        if rows and (yes or _is_confirmed(as_json)):
            found = service.patch(run_path(run), wanted)
            if not as_json:
                say(f"changed; policy version {found['policy_version']}")
        if as_json:
            print_json(found)


def _preview(run: str, step: int, rows: list[tuple[str, str, str]]) -> None:
    if not rows:
        say(f"nothing to change: run {run} has these settings already")
        return
    say(f"run {run}, from step {step:,} on:")
    say(table_of(("setting", "now", "then"), rows))


def _is_confirmed(as_json: bool) -> bool:
    """Ask; where nobody can answer, say how to do it without."""
    if as_json:
        raise typer.BadParameter("with --json nothing is asked; say --yes to make the change", param_hint="--yes")
    try:
        return typer.confirm("change it?")
    except typer.Abort:
        raise typer.BadParameter("nobody has answered; say --yes to make the change", param_hint="--yes") from None
