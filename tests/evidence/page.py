"""Writes the tables of `docs/evidence.md` from the results of studies.

    python -m tests.evidence.page STUDY.toml [MORE.toml ...] --untuned OTHER.toml

Further studies must differ from the first in their arms alone: a seed means the same order of target rows in all of
them, so their arms are compared pair by pair. The other study has targets of its own, on which nothing was chosen.
Nothing is trained. An unfinished study gives what it has.
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from replay_trainer.study.advice import percent
from replay_trainer.study.analysis import Analysis, ArmSummary, analyzed
from replay_trainer.study.cells import Study
from replay_trainer.study.outcomes import Outcome, Paired, read_outcomes
from replay_trainer.study.report import as_table, counted, equal_rows, nats
from replay_trainer.study.settings import StudySettings
from tests.evidence.gains import gains_of, in_words

PAGE: Final = Path(__file__).parents[2] / "docs" / "evidence.md"
_LEAST_SEEDS_FOR_P: Final = 3
"""Two seeds have three resamples: a p of theirs is nothing but the least there is."""
_P: Final = "p (Holm)"


@dataclass(frozen=True, slots=True)
class Results:
    """The outcomes of one study or several, so far."""

    arms: tuple[str, ...]
    targets: tuple[str, ...]
    studies: tuple[Study, ...]
    outcomes: tuple[Outcome, ...]
    num_finished: int
    num_cells: int

    @classmethod
    def of(cls, files: Iterable[Path]) -> "Results":
        studies = tuple(Study.of(StudySettings.read(each)) for each in files)
        cells = [(each.folder / "results" / f"{cell.name}.json", cell) for each in studies for cell in each.cells]
        return cls(
            arms=tuple(dict.fromkeys(arm for each in studies for arm in each.arms)),
            targets=studies[0].targets if studies else (),
            studies=studies,
            outcomes=tuple(read_outcomes(path for path, _ in cells)),
            num_finished=sum(path.exists() for path, _ in cells),
            num_cells=len(cells),
        )

    def of_all_arms(self) -> Paired | None:
        """All arms, over the pairs that all of them have."""
        return self._of(self.arms, self.targets)

    def with_seeds(self, least: int) -> Paired | None:
        """The arms that have so many seeds or more of the first target, on the targets of which they all have them."""
        enough = [arm for arm in self.arms if any(self._seeds(arm, target) >= least for target in self.targets[:1])]
        targets = [target for target in self.targets if all(self._seeds(arm, target) >= least for arm in enough)]
        return self._of(enough, targets)

    def _of(self, arms: Sequence[str], targets: Sequence[str]) -> Paired | None:
        return Paired.of((each for each in self.outcomes if each.arm in arms), arms, targets)

    def _seeds(self, arm: str, target: str) -> int:
        return len({each.seed for each in self.outcomes if (each.arm, each.target) == (arm, target)})


def tables(results: Results, untuned: Results) -> dict[str, str]:
    """The text between the markers of each name."""
    finished, cells = (
        sum(getattr(each, name) for each in (results, untuned)) for name in ("num_finished", "num_cells")
    )
    gains = gains_of((*results.studies, *untuned.studies), (*results.outcomes, *untuned.outcomes))
    made = {"progress": f"{finished} of {cells} cells are finished.", "gains": in_words(gains)}
    chosen = {
        "intervals": results.with_seeds(2),
        "all-arms": results.of_all_arms(),
        "untuned": untuned.with_seeds(1),
    }
    for name, paired in chosen.items():
        made[name] = "No arm has enough cells yet." if paired is None else _table(paired)
        made[f"{name}-by-target"] = "" if paired is None else _by_target(paired)
    return made


def _table(paired: Paired) -> str:
    analysis = analyzed(paired)
    pairs = counted(analysis.num_pairs, "pair")
    rows = [_cells(each) for each in analysis.arms]
    if np.bincount(paired.target_of_pair).min() < _LEAST_SEEDS_FOR_P:
        rows = [{name: cell for name, cell in row.items() if name != _P} for row in rows]
    table = as_table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    return f"{', '.join(paired.targets)}; {pairs} of a target and a seed.\n\n{table}"


def _cells(arm: ArmSummary) -> dict[str, str]:
    """The cells of a row, by column."""
    compared = {
        "kept, equal rows": percent(arm.kept),
        _P: "-" if np.isnan(arm.p_adjusted) else f"{arm.p_adjusted:.2g}",
        "extra target loss": nats(arm.extra_loss, signed=True),
        "rows equal to its": equal_rows(arm),
    }
    return {
        "arm": arm.arm,
        "rows": f"{arm.rows:,.0f}",
        "target loss": nats(arm.target_loss),
        "forgetting": nats(arm.forgetting),
        "worst domain": nats(arm.worst),
        **(dict.fromkeys(compared, "reference") if arm.is_reference else compared),
    }


def _by_target(paired: Paired) -> str:
    """Forgetting and worst domain of each target with their intervals, where there are two seeds."""
    parts = {target: _of_target(paired, target) for target in paired.targets}
    head = ("arm", *(f"{target}: {what}" for target in parts for what in ("forgetting", "worst domain", "target loss")))
    rows = []
    for place, arm in enumerate(paired.arms):
        found = [analysis.arms[place] for analysis in parts.values()]
        rows.append(
            [arm, *(nats(value) for each in found for value in (each.forgetting, each.worst, each.target_loss))]
        )
    return as_table(head, rows)


def _of_target(paired: Paired, target: str) -> Analysis:
    of_target = paired.on([target])
    assert of_target is not None
    return analyzed(of_target)


def filled(page: str, parts: dict[str, str]) -> str:
    """The page with each part between its markers `<!-- table NAME -->` and `<!-- end -->`.

    Raises:
        ValueError: when the page has a marker of a name that is no part.
    """

    def part(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in parts:
            raise ValueError(f"the page has a table {name!r}; there are {', '.join(parts)}")
        return f"<!-- table {name} -->\n\n{parts[name]}\n\n<!-- end -->"

    return re.sub(r"<!-- table (?P<name>[\w-]+) -->.*?<!-- end -->", part, page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--untuned", type=Path, required=True)
    asked = parser.parse_args()
    PAGE.write_text(filled(PAGE.read_text(), tables(Results.of(asked.studies), Results.of([asked.untuned]))))


if __name__ == "__main__":
    main()
