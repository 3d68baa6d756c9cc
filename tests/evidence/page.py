"""Writes the tables of `docs/evidence.md` from the results of studies.

    python -m tests.evidence.page [STUDY.toml ...] [--table NAME=OTHER.toml ...]

Tables of studies that are not given stay as they are. Further studies must differ from the first in their arms alone: a
seed means the same order of target rows in all of them, so their arms are compared pair by pair. Each other study has a
table of its own, between the markers of its name. Nothing is trained. An unfinished study gives what it has.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
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

    @classmethod
    def of(cls, files: Iterable[Path]) -> "Results":
        studies = tuple(Study.of(StudySettings.read(each)) for each in files)
        files_of_cells = [each.folder / "results" / f"{cell.name}.json" for each in studies for cell in each.cells]
        return cls(
            arms=tuple(dict.fromkeys(arm for each in studies for arm in each.arms)),
            targets=studies[0].targets if studies else (),
            studies=studies,
            outcomes=tuple(read_outcomes(files_of_cells)),
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


def tables(results: Results, others: Mapping[str, Results]) -> dict[str, str]:
    """The text between the markers of each name, of the studies that were given."""
    made, chosen = dict[str, str](), {name: each.with_seeds(1) for name, each in others.items()}
    if results.studies:
        made["gains"] = in_words(gains_of(results.studies, results.outcomes))
        chosen |= {"intervals": results.with_seeds(2), "all-arms": results.of_all_arms()}
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
    said = [name for name in rows[0] if {row[name] for row in rows} - {"reference", "-"}]
    rows = [{name: row[name] for name in said} for row in rows]
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


def filled(page: str, parts: Mapping[str, str]) -> str:
    """The page with each part between its markers `<!-- table NAME -->` and `<!-- end -->`; some need none by target.

    Raises:
        ValueError: when the page lacks the markers of a part.
    """
    for name, content in parts.items():
        before, begin, rest = page.partition(f"<!-- table {name} -->")
        _, end, after = rest.partition("<!-- end -->")
        if not begin and name.endswith("-by-target"):
            continue
        if not (begin and end):
            raise ValueError(f"the page has no table {name!r}, between its marker and that of an end")
        page = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="*")
    parser.add_argument("--table", metavar="NAME=OTHER.toml", action="append", default=[])
    asked = parser.parse_args()
    others = {name: Results.of([Path(file)]) for name, _, file in (each.partition("=") for each in asked.table)}
    PAGE.write_text(filled(PAGE.read_text(), tables(Results.of(asked.studies), others)))


if __name__ == "__main__":
    main()
