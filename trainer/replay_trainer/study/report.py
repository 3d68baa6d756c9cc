"""The report of a study: `results.parquet`, `report.md`, and pictures where matplotlib is installed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replay_trainer.study.advice import advice, percent
from replay_trainer.study.analysis import Analysis, ArmSummary, analyzed
from replay_trainer.study.answers_report import table_of_arms, table_of_tasks, write_answers
from replay_trainer.study.bootstrap import Interval
from replay_trainer.study.cells import Study
from replay_trainer.study.outcomes import Outcome, Paired, write_parquet, write_whole

_HEAD = (
    "arm",
    "rows rehearsed",
    "target loss",
    "forgetting",
    "worst domain",
    "flips",
    "gains",
    "kept, equal rows",
    "extra target loss",
    "p (Holm)",
    "kept, equal target loss",
    "rows equal to its",
    "PFLOP",
    "s",
)
_COLUMNS = (
    "`kept`: the share of the reference's forgetting that the arm does not have. `rows equal to its`: how many times "
    "as many rows the reference needs for as little forgetting (rows, where the arm rehearses none). `worst domain`: "
    "chosen on one half of the held-out rows and read off the other. `flips`: right predictions of the base model that "
    "are wrong now; `gains`: the reverse."
)


@dataclass(frozen=True, slots=True)
class Report:
    """What was written.

    Attributes:
        text: of `report.md`.
        recommendation: the last paragraph of it.
        pictures: their paths; none without matplotlib, or without any whole pair of a target and a seed.
    """

    text: str
    recommendation: str
    pictures: tuple[Path, ...]


def write_report(study: Study, outcomes: Sequence[Outcome]) -> Report:
    """Analyze the outcomes so far, and write the report into the study's folder."""
    study.folder.mkdir(parents=True, exist_ok=True)
    write_parquet(study.folder / "results.parquet", outcomes)
    write_answers(study.folder / "answers.parquet", outcomes)
    paired = Paired.of(outcomes, study.arms, study.targets)
    if paired is None:
        recommendation = "No recommendation: on no target and seed are all arms finished yet."
        parts, pictures = list[str](), tuple[Path, ...]()
    else:
        recommendation, parts = _sections(study, paired)
        pictures = _pictures(study.folder, paired, analyzed(paired))
    finished = {(each.arm, each.target, each.seed) for each in outcomes}
    num_finished = sum((each.arm, each.target, each.seed) in finished for each in study.cells)
    progress = f"{num_finished} of {len(study.cells)} cells are finished." + _failures(outcomes)
    text = "\n\n".join(["# Study", progress, *parts, "## Recommendation", recommendation]) + "\n"
    write_whole(study.folder / "report.md", text)
    return Report(text, recommendation, pictures)


def _sections(study: Study, paired: Paired) -> tuple[str, list[str]]:
    """The recommendation, and what stands before it."""
    tuning = [each.name for each in study.settings.targets if each.tuning]
    chosen_on, reported_on = paired.on(tuning), paired.on(each for each in paired.targets if each not in tuning)
    both = chosen_on is not None and reported_on is not None
    chosen_on, reported_on = (chosen_on, reported_on) if both else (paired, paired)
    assert chosen_on is not None and reported_on is not None
    choosing, reporting = analyzed(chosen_on), analyzed(reported_on)
    parts = [_explanation(reporting, paired), f"## {', '.join(reported_on.targets)}", arm_table(reporting, reported_on)]
    if both:
        parts += [f"## {', '.join(chosen_on.targets)} (for the choice)", arm_table(choosing, chosen_on)]
    parts += ["## Forgetting by target", _by_target(paired), "## Forgetting by domain", _by_domain(paired)]
    return advice(choosing, reporting, study.settings.target_loss_margin), [*parts, *_answers(reported_on)]


def _answers(paired: Paired) -> list[str]:
    """What became of the answers to the study's questions, if it has any."""
    (head, rows), (head_of_tasks, tasks) = table_of_arms(paired), table_of_tasks(paired)
    if not rows:
        return []
    said = (
        "Shares of the questions, mean over targets. `flips`: the base model answers right and the tuned one wrong; "
        "`gains`: the reverse. Intervals are over seeds, and not over other questions. Below is what changed by task."
    )
    return ["## Multiple choice", said, as_table(head, rows), as_table(head_of_tasks, tasks)]


def _explanation(analysis: Analysis, paired: Paired) -> str:
    reference = "uniform rehearsal with cross-entropy" if analysis.has_frontier else f"{paired.arms[0]!r}"
    intervals = (
        "Figures have 95 % intervals by a paired bootstrap over the seeds of each target; they are of these targets."
        if analysis.has_intervals
        else "There are no intervals: a target has one seed alone."
    )
    return (
        f"Means over {counted(analysis.num_targets, 'target')} and {counted(analysis.num_pairs, 'pair')} of a target "
        f"and a seed, in nats per token on held-out rows. {intervals} The reference is {reference}. {_COLUMNS}"
    )


def counted(number: int, noun: str) -> str:
    """`1 target`, `2 targets`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def arm_table(analysis: Analysis, paired: Paired) -> str:
    """All arms as a Markdown table."""
    return as_table(_HEAD, [_cells(each, paired.outcomes[paired.arms.index(each.arm)]) for each in analysis.arms])


def _cells(arm: ArmSummary, outcomes: Sequence[Outcome]) -> list[str]:
    equal_loss = "-" if arm.kept_at_equal_loss is None else percent(arm.kept_at_equal_loss)
    costs = [each.cost for each in outcomes]
    return [
        arm.arm,
        f"{arm.rows:,.0f}",
        nats(arm.target_loss),
        nats(arm.forgetting),
        nats(arm.worst),
        f"{np.mean([each.share_of_flips() for each in outcomes]):.1%}",
        f"{np.mean([each.share_of_gains() for each in outcomes]):.1%}",
        "reference" if arm.is_reference else percent(arm.kept),
        "reference" if arm.is_reference else nats(arm.extra_loss, signed=True),
        "-" if np.isnan(arm.p_adjusted) else f"{arm.p_adjusted:.2g}",
        "reference" if arm.is_reference else equal_loss,
        "reference" if arm.is_reference else equal_rows(arm),
        f"{np.mean([each.flops for each in costs]) / 1e15:.3g}",
        f"{np.mean([each.training_s for each in costs]):.0f}",
    ]


def equal_rows(arm: ArmSummary) -> str:
    """How many times as many rows the reference needs for as little forgetting; rows, where the arm has none."""
    found = arm.equivalence
    if found is None:
        return "-"
    if found.outside == "none needed":
        return "more than without rehearsal"
    number, form = (found.rows, "{:,.0f} rows") if found.ratio is None else (found.ratio, "{:.2f}")
    if found.outside == "beyond":
        return f"more than {form.format(number.value)}"
    return form.format(number.value) + _ends(number, "{:.2f}" if found.ratio is not None else "{:,.0f}", found.is_open)


def nats(found: Interval, *, signed: bool = False) -> str:
    """A number with its interval, `0.145 (0.140 to 0.151)`."""
    form = "{:+.3f}" if signed else "{:.3f}"
    return form.format(found.value) + _ends(found, form, False)


def _ends(found: Interval, form: str, is_open: bool) -> str:
    if not found.is_known:
        return ""
    return f" ({form.format(found.low)} to {form.format(found.high)}{' or more' if is_open else ''})"


def _by_target(paired: Paired) -> str:
    head = ("arm", *(f"{target}: {what}" for target in paired.targets for what in ("forgetting", "target loss")))
    forgetting = np.nanmean(paired.forgetting, axis=(2, 3))
    rows = []
    for index, arm in enumerate(paired.arms):
        cells = [arm]
        for target in range(len(paired.targets)):
            of_target = paired.target_of_pair == target
            cells += [f"{values[index, of_target].mean():.3f}" for values in (forgetting, paired.target_loss)]
        rows.append(cells)
    return as_table(head, rows)


def _by_domain(paired: Paired) -> str:
    forgetting = np.nanmean(paired.forgetting, axis=(1, 3))
    rows = [[arm, *(f"{each:.3f}" for each in values)] for arm, values in zip(paired.arms, forgetting, strict=True)]
    return as_table(("arm", *paired.domains), rows)


def _failures(outcomes: Iterable[Outcome]) -> str:
    failed = {each.arm: each for each in outcomes if each.failure is not None}
    said = (f"{arm!r} ({each.target}, seed {each.seed}): {each.failure}" for arm, each in failed.items())
    return f" Left out, since training broke down: {'; '.join(said)}." if failed else ""


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _pictures(folder: Path, paired: Paired, analysis: Analysis) -> tuple[Path, ...]:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return ()
    from replay_trainer.study.pictures import draw_all

    return draw_all(folder, paired, analysis)
