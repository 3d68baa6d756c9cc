"""What a sequence of targets leaves of the corpus and of each target: `python -m tests.evidence.kept FILE`."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replay_trainer.study.analysis import worst_domain
from tests.benchmarks.ratios import as_table
from tests.evidence.chains import Row, read_rows, spread, whole_chains


@dataclass(frozen=True, slots=True)
class Kept:
    """What was measured of one chain.

    Attributes:
        forgetting: of the corpus after each stage, mean over domains, nats per token.
        worst: of the domain that is worst on one half of its rows, on the other half, after each stage.
        losses: of each target after each stage, [target][stage], nats per token.
        base: losses of the targets by the first model.
    """

    arm: str
    forgetting: list[float]
    worst: list[float]
    losses: list[list[float]]
    base: list[float]

    @classmethod
    def of(cls, rows: Sequence[Row], targets: Sequence[str]) -> "Kept":
        """Of the rows of one chain."""
        stages = [[each for each in rows if each["stage"] == stage + 1] for stage in range(len(targets))]
        risen = [_risen(each) for each in stages]
        of_target = [[_of(each, target) for each in stages] for target in targets]
        return cls(
            arm=rows[0]["arm"],
            forgetting=[float(each.mean()) for each in risen],
            worst=[float(worst_domain(each[None, None])[0, 0]) for each in risen],
            losses=[[_loss(each, "nats") for each in some] for some in of_target],
            base=[_loss(some[0], "base_nats") for some in of_target],
        )


def _risen(rows: Iterable[Row]) -> np.ndarray:
    """Loss minus base loss, [D, 2]."""
    found = {
        (each["text"], each["half"]): (each["nats"] - each["base_nats"]) / each["num_tokens"]
        for each in rows
        if each["kind"] == "pretraining"
    }
    domains = sorted({text for text, _ in found})
    return np.array([[found[domain, half] for half in (0, 1)] for domain in domains])


def _of(rows: Iterable[Row], target: str) -> list[Row]:
    return [each for each in rows if each["kind"] == "target" and each["text"] == target]


def _loss(rows: Sequence[Row], column: str) -> float:
    return float(sum(each[column] for each in rows) / sum(each["num_tokens"] for each in rows))


def kept_by_arm(rows: Sequence[Row], targets: Sequence[str]) -> dict[str, list[Kept]]:
    """The chains that are finished, one for each seed."""
    whole = whole_chains(rows, len(targets))
    found = dict[str, list[Kept]]()
    for arm, seed in dict.fromkeys((each["arm"], each["seed"]) for each in whole):
        of_chain = [each for each in whole if (each["arm"], each["seed"]) == (arm, seed)]
        found.setdefault(arm, []).append(Kept.of(of_chain, targets))
    return found


def tables(rows: Sequence[Row], targets: Sequence[str]) -> str:
    """What is forgotten of the corpus, and what is kept of the targets: means over seeds, in brackets the extremes."""
    found = kept_by_arm(rows, targets)
    if not found:
        return "No chain is finished yet."
    return f"{_of_corpus(found, targets)}\n\n{_of_targets(found, targets)}"


def _of_corpus(found: dict[str, list[Kept]], targets: Sequence[str]) -> str:
    stages = range(len(targets))
    after = [f"{what}after {target}" for what in ("", "worst domain ") for target in targets]
    cells = [
        [
            arm,
            str(len(kept)),
            *(spread([each.forgetting[stage] for each in kept], 3) for stage in stages),
            *(spread([each.worst[stage] for each in kept], 3) for stage in stages),
        ]
        for arm, kept in found.items()
    ]
    return f"Forgetting of the corpus, nats per token:\n\n{as_table(['arm', 'seeds', *after], cells)}"


def _of_targets(found: dict[str, list[Kept]], targets: Sequence[str]) -> str:
    last = len(targets) - 1
    head = ["arm", *(f"{target}: {when}" for target in targets[:-1] for when in ("after its stage", "at the end"))]
    base = next(iter(found.values()))[0].base
    first = ["first model", *(f"{loss:.3f}" for loss in base[:-1] for _ in range(2)), f"{base[-1]:.3f}"]
    cells = [
        [
            arm,
            *(
                spread([each.losses[place][stage] for each in kept], 3)
                for place in range(last)
                for stage in (place, last)
            ),
            spread([each.losses[last][last] for each in kept], 3),
        ]
        for arm, kept in found.items()
    ]
    table = as_table([*head, f"{targets[-1]}: at the end"], [first, *cells])
    return f"Loss on each target, nats per token:\n\n{table}"


def targets_of(rows: Iterable[Row]) -> list[str]:
    """The targets that were tuned on, in order."""
    return list(dict(sorted((each["stage"], each["target"]) for each in rows)).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    rows = read_rows(parser.parse_args().results)
    print(tables(rows, targets_of(rows)))


if __name__ == "__main__":
    main()
