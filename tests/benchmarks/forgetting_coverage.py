"""How often the intervals of forgetting hold the truth: `python -m tests.benchmarks.forgetting_coverage`.

Runs of `tests.sampling.forgetting_worlds`, through the real planner and the real fold.
"""

import argparse
import re
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Final

import numpy as np

from tests.benchmarks.ratios import as_table
from tests.sampling.forgetting_worlds import WORLDS, Coverage, coverage

HEAD: Final = ("world", "corpus", "bias", "half-width", "not known", "domains", "half-width", "not known")
PLACE: Final = re.compile("(?<=<!-- coverage -->\n).*?(?=<!-- end of coverage -->)", re.DOTALL)
"""Where in a page the table stands."""


def row_of(index: int, seeds: range) -> list[str]:
    world = WORLDS[index]
    whole, domains = coverage(world, seeds)
    mark = " (*)" if world.exception else ""
    bias = f"{np.mean(whole.errors):+.3f}" if whole.errors else "-"
    return [world.name + mark, _share(whole), bias, *_told(whole), _share(domains), *_told(domains)]


def _share(found: Coverage) -> str:
    return f"{found.share:.0%}" if found.num_told else "-"


def _told(found: Coverage) -> tuple[str, str]:
    width = f"{np.median(found.half_widths):.2f}" if found.half_widths else "-"
    return width, f"{1 - found.num_told / found.num_asked:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of each world")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--worlds", nargs="*", default=[], help="parts of the names of those to run")
    parser.add_argument("--write", type=Path, help="page in which to put the table")
    args = parser.parse_args()
    wanted = [i for i, world in enumerate(WORLDS) if not args.worlds or any(part in world.name for part in args.worlds)]
    seeds, rows = range(args.first_seed, args.first_seed + args.runs), []
    with ProcessPoolExecutor(args.processes) as processes:
        for row in processes.map(row_of, wanted, repeat(seeds)):
            print(" | ".join(row), flush=True)
            rows.append(row)
    table = as_table(HEAD, rows)
    print(f"\n{table}")
    if args.write is not None:
        args.write.write_text(PLACE.sub(lambda _: f"\n{table}\n\n", args.write.read_text()))


if __name__ == "__main__":
    main()
