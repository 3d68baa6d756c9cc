"""`replay-service up | status | down`: the service on the nodes of a Ray cluster."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from replay_service.cli.operators.options import JsonOption, print_json, say
from replay_service.cli.operators.words import visible
from replay_service.cli.serve import FLAGS, check_access
from replay_service.cli.shared import console, errors_as_messages, read_settings
from replay_service.setting_options import settings_options, with_options
from replay_service.settings import ServiceSettings

AddressOption = Annotated[
    str, typer.Option(help="The Ray cluster, host:port. `auto`: RAY_ADDRESS, or the cluster of this machine.")
]


@with_options(settings_options(ServiceSettings, FLAGS))
def up(
    address: AddressOption = "auto",
    config: Annotated[
        Path | None,
        typer.Option("--config", help="TOML file of the service's settings, at the same path on every node."),
    ] = None,
    ready_within_s: Annotated[float, typer.Option(min=1, help="Seconds that each node has to become ready.")] = 180.0,
    **flags: Any,
) -> None:
    """Run the service on a Ray cluster: with --cluster on every node, without it on this one.

    A supervisor on each node runs `serve` with these options, and starts it again when it ends. Run again with other
    options, another configuration file or another version, it restarts one node after the other, each when the one
    before is ready. Settings also come from the environment of each node. Secrets are files that every node has.
    """
    with errors_as_messages():
        settings = read_settings(config, **flags)
        check_access(settings)
        from replay_service.ray_service.roll_out import Change, bring_up
        from replay_service.ray_service.supervisor import ServeCommand
        from replay_service.ray_session import join_ray

        def show(change: Change) -> None:
            console.print(f"{change.node}: {change.done}", soft_wrap=True, markup=False, highlight=False)

        given = {name: _plain(value) for name, value in flags.items() if value is not None}
        command = ServeCommand(None if config is None else str(config.absolute()), given)
        join_ray(address)
        bring_up(command, settings.cluster, ready_within_s, show)


def status(address: AddressOption = "auto", as_json: JsonOption = False) -> None:
    """Say what `up` runs on each node of a Ray cluster, in which version, and whether it is ready.

    The exit code is 1 when a node is not ready, or nothing runs.
    """
    with errors_as_messages():
        from replay_service.ray_service.roll_out import statuses
        from replay_service.ray_session import join_ray

        join_ray(address)
        found = statuses()
    if as_json:
        print_json([asdict(each) for each in found])
    elif found:
        table = Table("node", "version", "pid", "ready", "problem", box=None)
        for each in found:
            pid, ready = "" if each.pid is None else str(each.pid), "yes" if each.is_ready else "no"
            table.add_row(*map(visible, (each.node, each.version, pid, ready, each.problem)))
        say(table)
    else:
        say("nothing runs; start it with `replay-service up`")
    if not (found and all(each.is_ready for each in found)):
        raise typer.Exit(1)


def down(address: AddressOption = "auto") -> None:
    """Stop what `up` runs on all nodes of a Ray cluster; open requests are finished first."""
    with errors_as_messages():
        from replay_service.ray_service.roll_out import take_down
        from replay_service.ray_session import join_ray

        join_ray(address)
        num_nodes = take_down()
    console.print(f"stopped on {num_nodes} {'node' if num_nodes == 1 else 'nodes'}", soft_wrap=True, highlight=False)


def _plain(value: Any) -> str | int | bool:
    """A value of an option as it stands on a command line; a path is one of every node."""
    if isinstance(value, Path):
        return str(value.absolute())
    return value if isinstance(value, (str, int, bool)) else str(value)
