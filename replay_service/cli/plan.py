"""`replay-service plan`: which injection ratio to take."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from replay_service.cli.shared import console, errors_as_messages
from replay_service.planning.settings import PlanSettings
from replay_service.setting_options import options_of, with_options

_answers: Final = Console(markup=False, emoji=False, highlight=False)


@with_options(options_of(PlanSettings))
def plan(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Files of runs (.parquet, .csv, .jsonl), or the results.parquet of studies."),
    ],
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="column=value: take only runs with that value; may be given again."),
    ] = None,
    predict_largest: Annotated[
        bool,
        typer.Option("--predict-largest", help="Also predict the longest runs of the largest model from the others."),
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the runs and the law into this file (.png, .svg, .pdf).")
    ] = None,
    **options: Any,
) -> None:
    """Fit the scaling laws of forgetting and of the target loss to runs, and say which injection ratio to take.

    Each run is a row with the columns num_parameters, target_tokens, injection_ratio, base_loss, pretraining_loss,
    and if they are known rehearsal_weight and target_loss. The result has 95 % intervals by a bootstrap over runs, and
    the section of a job to paste.
    """
    with errors_as_messages():
        try:
            settings = PlanSettings(**options)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        from replay_service.planning.files import read_runs
        from replay_service.planning.holdout import predict_largest as predicted
        from replay_service.planning.plan import make_plan, num_fits
        from replay_service.planning.report import report
        from replay_service.progress import progress_bar

        if picture is not None:
            from replay_service.planning.picture import check_path, draw

            check_path(picture)
        found = read_runs(runs, where or ())
        foretold = predicted(found) if predict_largest else None
        with progress_bar(console) as bar:
            task = bar.add_task("bootstrap", total=num_fits(found, settings), note="")
            made = make_plan(found, settings, lambda: bar.advance(task))
        _answers.print(report(made, foretold), soft_wrap=True)
        if picture is not None:
            draw(made, picture)
            console.print(f"picture in {picture}", markup=False, soft_wrap=True)
