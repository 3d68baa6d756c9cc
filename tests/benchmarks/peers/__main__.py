"""This service beside others that serve rows by priority: `python -m tests.benchmarks.peers`.

README.md in the folder above says what each ratio means.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks.peers.environments import FOLDER_VARIABLE, Environments, default_folder
from tests.benchmarks.peers.side import Side, Turn, running_side
from tests.benchmarks.ratios import as_table

OURS: Final = "ours"
PEERS: Final = ("reverb", "torchrl", "cpprb")


@dataclass(frozen=True, slots=True)
class Way:
    """A line of the table: what it is called, which side has it by which name, and whether it is one client's alone."""

    label: str
    side: str
    name: str
    is_in_process: bool = False


WAYS: Final = (
    Way("ours, one step a request", OURS, "one step a request"),
    Way("ours, 8 steps a request", OURS, "8 steps a request"),
    Way("ours, 32 steps a request", OURS, "32 steps a request"),
    Way("ours, 32 steps, relaxed", OURS, "relaxed"),
    Way("Reverb", "reverb", "served"),
    Way("TorchRL, actor of Ray", "torchrl", "actor"),
    Way("TorchRL, RayReplayBuffer", "torchrl", "RayReplayBuffer"),
    Way("in process: ours", OURS, "in process", is_in_process=True),
    Way("in process: TorchRL", "torchrl", "in process", is_in_process=True),
    Way("in process: cpprb", "cpprb", "in process", is_in_process=True),
)
"""The first three are what the others are compared with."""


def main() -> None:
    wanted = arguments()
    environments = Environments(wanted.folder)
    if wanted.prepare:
        for peer in wanted.peers:
            environments.prepare(peer)
        return
    with tempfile.TemporaryDirectory() as logs, ExitStack() as stack:
        sides = started(environments, wanted.peers, wanted.rows, Path(logs), stack)
        print("; ".join(version for side in sides.values() for version in side.versions), end="\n\n")
        print(compared(sides, wanted.clients, wanted.seconds, wanted.repeats))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prepare", action="store_true", help="make the peers' environments, and measure nothing")
    parser.add_argument(
        "--folder", type=Path, default=default_folder(), help=f"of the environments; by default ${FOLDER_VARIABLE}"
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rows", type=int, default=32_768, help="that are held, 2.2 KB each")
    return parser.parse_args()


def started(
    environments: Environments, peers: Sequence[str], num_rows: int, logs: Path, stack: ExitStack
) -> dict[str, Side]:
    """All sides that can be had; of the others it says that they are left out."""
    commands = {OURS: [sys.executable, "-m", "tests.benchmarks.peers.ours"]}
    for peer in peers:
        if environments.is_prepared(peer):
            commands[peer] = environments.command(peer)
        else:
            print(f"{peer} is left out: no environment for {peer}.txt in {environments.folder}; make it by --prepare")
    return {
        name: stack.enter_context(running_side([*command, str(num_rows)], logs / name))
        for name, command in commands.items()
    }


def compared(sides: Mapping[str, Side], clients: Sequence[int], seconds: float, repeats: int) -> str:
    """Every way at every number of clients; they take turns within each round."""
    rows = []
    for num_clients in clients:
        ways = [way for way in WAYS if way.side in sides and (num_clients == 1 or not way.is_in_process)]
        rounds = [[sides[way.side].turn(way.name, num_clients, seconds) for way in ways] for _ in range(repeats)]
        turns = [list(each) for each in zip(*rounds, strict=True)]
        rows += [[str(num_clients), way.label, *cells(own, turns[:3])] for way, own in zip(ways, turns, strict=True)]
    steps = ("1 step over it", "8 steps over it", "32 steps over it")
    return as_table(["clients", "what", "rate", *steps, "p50", "p99", "server CPU a million rows"], rows)


def cells(own: Sequence[Turn], ours: Sequence[Sequence[Turn]]) -> Iterator[str]:
    """Medians; and how many times the rate of `own` each of ours has in the same round, median (least-most)."""
    yield f"{statistics.median(each.rate for each in own):,.0f} rows/s"
    for mine in ours:
        ratios = [each.rate / other.rate for each, other in zip(mine, own, strict=True)]
        yield f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    for name in ("p50", "p99"):
        yield f"{1000 * statistics.median(getattr(each, name) for each in own):.2f} ms"
    yield f"{1e6 * statistics.median(each.cpu for each in own):.1f} s"


if __name__ == "__main__":
    main()
