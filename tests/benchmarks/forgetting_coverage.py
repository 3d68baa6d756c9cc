"""How often the intervals of forgetting hold the truth: `python -m tests.benchmarks.forgetting_coverage`.

Runs of `tests.sampling.forgetting_worlds`, through the real planner and the real fold.
"""

import re
from typing import Final

import numpy as np

from tests.benchmarks.worlds_table import run_worlds
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
    run_worlds(__doc__, [world.name for world in WORLDS], HEAD, row_of, PLACE)


if __name__ == "__main__":
    main()
