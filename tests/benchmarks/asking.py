"""How many requests for batches a job makes, counted: `python -m tests.benchmarks.asking`.

README.md in this folder says what the columns mean.
"""

import argparse
from typing import Any, Final

from replay_service.gateway.logs import configure_logs
from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer.windows import Auto
from tests.benchmarks.ratios import as_table
from tests.trainer.asked import Counting, whole_job

FENCED: Final = {"feedback": {"mode": "fenced", "lag": 8}}
WAYS: Final[dict[str, tuple[int | Auto, dict[str, Any]]]] = {
    "`auto`": ("auto", {}),
    "4": (4, {}),
    "`auto`, fenced": ("auto", FENCED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of a job")
    parser.add_argument("--rows", type=int, default=16, help="global_batch_size")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--ratios", nargs="+", default=["0.01", "0.001", "0"])
    wanted = parser.parse_args()
    configure_logs("warning")
    lines: list[list[str]] = []
    with replay_service(rows_per_domain=500) as service:
        for ratio in wanted.ratios:
            for way, (window_steps, settings) in WAYS.items():
                line = [ratio, way]
                for promised in (False, True):
                    sampling = {"global_batch_size": wanted.rows, "injection_ratio": ratio, "injection_fixed": promised}
                    run = f"run-{len(lines)}-{len(line)}"
                    num = _count(service, run, wanted.ranks, wanted.steps, window_steps, {**settings, **sampling})
                    line.append(f"{num:,}")
                lines.append(line)
    print(as_table(["injection ratio", "window_steps", "requests", "with injection_fixed"], lines))


def _count(
    service: ServiceUnderTest,
    name: str,
    world_size: int,
    num_steps: int,
    window_steps: int | Auto,
    settings: dict[str, Any],
) -> int:
    counting = Counting(service)
    with service.client(transport=counting) as client:
        whole_job(client, name, world_size, num_steps, window_steps, **settings)
    return counting.num_batches


if __name__ == "__main__":
    main()
