"""The command of benchmarks that simulate named worlds and put a table of them into a page."""

import argparse
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from tests.benchmarks.ratios import as_table


def run_worlds(
    description: str | None,
    names: Sequence[str],
    head: Sequence[str],
    row_of: Callable[[int, range], list[str]],
    place: re.Pattern[str],
) -> None:
    """Simulate the worlds that the command line asks for, print a row of each, and write the table where it says.

    Args:
        names: of all worlds.
        row_of: makes the row of a world, by its number and the seeds of its runs; another process can call it.
        place: what the table replaces in a page.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of each world")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--worlds", nargs="*", default=[], help="parts of the names of those to run")
    parser.add_argument("--write", type=Path, help="page in which to put the table")
    args = parser.parse_args()
    wanted = [i for i, name in enumerate(names) if not args.worlds or any(part in name for part in args.worlds)]
    seeds, rows = range(args.first_seed, args.first_seed + args.runs), []
    with ProcessPoolExecutor(args.processes) as processes:
        for row in processes.map(row_of, wanted, repeat(seeds)):
            print(" | ".join(row), flush=True)
            rows.append(row)
    table = as_table(list(head), rows)
    print(f"\n{table}")
    if args.write is not None:
        args.write.write_text(place.sub(lambda _: f"\n{table}\n\n", args.write.read_text()))
