"""The command line `replay-trainer`."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from replay_service.errors import RayUnavailable
from replay_service.extras import missing_package
from replay_service.sampling.bounds import description_of
from replay_service.setting_options import options_of, with_options
from replay_service.stopping import Stopped, stop_signals
from replay_service.version import say_version
from replay_trainer.config import TrainConfig, read_config
from replay_trainer.errors import TrainerError
from replay_trainer.keys import all_keys
from replay_trainer.scoring_settings import ScoringSettings
from replay_trainer.service_urls import URL_VARIABLE, service_urls, shown_urls
from replay_trainer.study.settings import StudySettings

if TYPE_CHECKING:
    from replay_trainer.job.progress import ProgressLine

_WARM_UP_STEPS = 2
_MOST_NAMED = 5

app = typer.Typer(
    help="Fine-tune a language model that does not forget.", no_args_is_help=True, pretty_exceptions_enable=False
)
console = Console(stderr=True)


@app.callback()
def _commands(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=say_version, help="Say which.")] = False,
) -> None:
    """Fine-tune a language model that does not forget."""


def _instead(key: str) -> str:
    """The help of an option that replaces a key of the job's file."""
    return f"{dict(all_keys(TrainConfig))[key].description} Replaces `{key}` of the file."


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML file of the job; the reference lists its keys.")],
    service_url: Annotated[
        str | None, typer.Option(help=f"{_instead('rehearsal.service_url')} So does the variable {URL_VARIABLE}.")
    ] = None,
    run: Annotated[str | None, typer.Option(help=_instead("rehearsal.run"))] = None,
    injection_ratio: Annotated[str | None, typer.Option(help=_instead("rehearsal.injection_ratio"))] = None,
    num_steps: Annotated[int | None, typer.Option(help=_instead("num_steps"))] = None,
    output: Annotated[Path | None, typer.Option(help=_instead("output"))] = None,
    profile: Annotated[bool, typer.Option("--profile", help=_instead("profile"))] = False,
) -> None:
    """Fine-tune with Ray Train, rehearsing what the service plans.

    Started again after it was stopped, the job goes on from its last checkpoint, and so does its run at the
    service.
    """
    overrides: dict[str, Any] = {
        "rehearsal.service_url": service_url,
        "rehearsal.run": run,
        "rehearsal.injection_ratio": injection_ratio,
        "num_steps": num_steps,
        "output": None if output is None else str(output.absolute()),
        "profile": profile or None,
    }
    with _mistakes_as_messages("stopped; run the same command again to go on from the last checkpoint"):
        named = {name: value for name, value in overrides.items() if value is not None}
        job = read_config(config, named, os.environ)
        from replay_service.ray_session import start_ray

        with stop_signals():
            start_ray()
            watch_training(job, console, "train")
    if job.profile:
        _print_profile(job)
    console.print(f"metrics in {job.output / 'metrics.jsonl'}", soft_wrap=True)


@app.command()
@with_options(options_of(ScoringSettings, leave_out={"source", "response_column", "prompt_column"}))
def score(
    source: Annotated[Path, typer.Argument(help=description_of(ScoringSettings, "source"))],
    text_column: Annotated[str | None, typer.Option(help="Column that holds the text, if not `text`.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help=description_of(ScoringSettings, "prompt_column"))] = None,
    response_column: Annotated[
        str | None, typer.Option(help=description_of(ScoringSettings, "response_column"))
    ] = None,
    **options: Any,
) -> None:
    """Add the base model's loss to every row of a fine-tuning set.

    The columns base_loss (mean nats per token), base_token_losses (nats of each token) and truncated are added, the
    others are kept. It is what FLOW weighs rows by.
    """
    if (prompt_column is None) != (response_column is None):
        raise typer.BadParameter("--prompt-column and --response-column go together; name both, or neither")
    if text_column is not None and response_column is not None:
        raise typer.BadParameter("a row is either a text or a prompt and a response; leave out --text-column")
    with _mistakes_as_messages("stopped; nothing was written"):
        settings = ScoringSettings(
            source=source,
            response_column=response_column or text_column or "text",
            prompt_column=prompt_column,
            **options,
        )
        with stop_signals():
            watch_scoring(settings, console)


@app.command()
def study(
    config: Annotated[Path, typer.Argument(help="TOML file of a job with a section [study]; see the how-to.")],
    arm: Annotated[
        list[str] | None, typer.Option("--arm", help="Train the cells of this arm alone for now; repeat it.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Train the cells with this seed alone for now; repeat it.")
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; report what is finished so far.")
    ] = False,
) -> None:
    """Compare methods on your own data: the same job by several arms, on several targets, with several seeds.

    Each cell is a job of its own, trained by the loop of `train`, with a run of its own at the service. Started again
    after it was stopped, the study goes on with the cells that are not finished. Its report ends with a recommendation.
    """
    with _mistakes_as_messages("stopped; run the same command again to go on with the cells that are left"):
        from replay_trainer.study.command import carry_out, report

        settings = StudySettings.read(config)
        with stop_signals():
            if not report_only:
                from replay_service.ray_session import start_ray

                carry_out(settings, console, start_ray, arm or (), seed or ())
            report(settings, console)


@app.command()
def interpolate(
    base: Annotated[str, typer.Argument(help="The model that was tuned: a local folder or a Hugging Face hub name.")],
    tuned: Annotated[str, typer.Argument(help="What it became: a folder such as `output`/model of a job.")],
    heldout_pretraining: Annotated[str, typer.Option(help="Shards of pretraining text to measure forgetting on.")],
    heldout_target: Annotated[str | None, typer.Option(help="Shards to measure the target loss on.")] = None,
    tuned_share: Annotated[
        list[float] | None,
        typer.Option("--lambda", help="Share of the tuned weights, from 0 to 1; repeat it. By default 0.1 to 0.9."),
    ] = None,
    budget_nats: Annotated[
        float | None,
        typer.Option(help="Forgetting that is allowed, nats per token. The best share within it is named."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the best share's weights; needs --budget-nats.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    domain_column: Annotated[str | None, typer.Option(help="Column that holds the domain of held-out text.")] = None,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens in a row.")] = 512,
    heldout_rows: Annotated[int, typer.Option(min=1, help="Most held-out rows of each domain.")] = 1024,
) -> None:
    """Interpolate a tuned model's weights with the base model's, after training (WiSE-FT).

    Each share is scored on held-out text. It needs no service and no pretraining data but what is held out.
    """
    if output is not None and budget_nats is None:
        raise typer.BadParameter("--output needs --budget-nats, which says which share is the best")
    shares = tuned_share or [share / 10 for share in range(1, 10)]
    if not all(0.0 <= share <= 1.0 for share in shares):
        raise typer.BadParameter("--lambda must lie between 0 and 1: it is the share of the tuned weights")
    data = {
        "target": heldout_target or heldout_pretraining,
        "heldout_target": heldout_target,
        "heldout_pretraining": heldout_pretraining,
        "text_column": text_column,
        "domain_column": domain_column,
        "seq_len": seq_len,
    }
    with _mistakes_as_messages("stopped; no weights were written"):
        from replay_trainer.study.command import score_shares

        with stop_signals():
            score_shares(base, tuned, data, sorted(set(shares)), budget_nats, output, heldout_rows, console)


@contextmanager
def _mistakes_as_messages(when_stopped: str) -> Iterator[None]:
    """A user's mistake ends with one message and exit code 2, not with a traceback; a signal with 128 + its number."""
    try:
        yield
    except Stopped as stopped:
        console.print(when_stopped, highlight=False)
        sys.exit(stopped.exit_code)
    except (TrainerError, RayUnavailable) as error:
        _print_error(str(error))
        sys.exit(2)
    except ModuleNotFoundError as error:
        _print_error(missing_package(error, "train"))
        sys.exit(2)


def _print_error(message: str) -> None:
    console.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)


def watch_scoring(settings: "ScoringSettings", console: Console) -> None:
    """Score with a progress bar on `console`, and say what was done."""
    from replay_service.progress import progress_bar
    from replay_trainer.scoring import score_rows

    with progress_bar(console) as bar:
        task = bar.add_task("score", total=None, note="reading the rows, starting the base model")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, note=f"{done:,} of {total:,} rows")

        summary = score_rows(settings, show)
    console.print(
        f"{summary.num_rows:,} rows in {settings.output}: mean loss {summary.mean_nats():.3f} nats over "
        f"{summary.num_tokens:,} tokens ({summary.precision}); {summary.num_truncated:,} truncated, "
        f"{summary.num_unscored:,} without a token to score",
        soft_wrap=True,
        markup=False,
    )
    if summary.as_json:
        console.print(f"kept as JSON in text: {', '.join(summary.as_json)}", soft_wrap=True, markup=False)
    if summary.unusable:
        first = "; ".join(f"{each.place}: {each.reason}" for each in summary.unusable[:_MOST_NAMED])
        more = f"; and {len(summary.unusable) - _MOST_NAMED:,} more" if len(summary.unusable) > _MOST_NAMED else ""
        num = f"{len(summary.unusable):,} of {summary.num_rows:,}"
        console.print(f"no loss for {num} rows: {first}{more}", soft_wrap=True, markup=False)


def watch_training(job: TrainConfig, console: Console, title: str) -> None:
    """Train with a progress line on `console`."""
    from replay_trainer.job.feed import with_teacher
    from replay_trainer.job.progress import ProgressLine
    from replay_trainer.job.ray_train import run_training

    job = with_teacher(job)
    if job.rehearsal is not None:
        if job.rehearsal.recipe is not None:
            console.print(f"{title}  {job.rehearsal.in_words()}", markup=False, highlight=False, soft_wrap=True)
        first, *_ = service_urls(job.rehearsal.service_url)
        where = f"{shown_urls([first]).rstrip('/')}/runs/{job.rehearsal.run}"
        console.print(f"{title}  look at {where}", markup=False, highlight=False, soft_wrap=True)
    with ProgressLine(console, title, job.num_steps, time.monotonic) as line:
        watched = _Watched(job, line)
        with _every_second(watched.show_new):
            run_training(job)


ESTIMATES: Final = ("forgetting", "rows_due", "rows_rehearsed", "late_steps")


@dataclass(slots=True)
class _Watched:
    """A job as its metrics file shows it.

    Lines that stood in the file before the job began are of another one, and are not shown.
    """

    job: TrainConfig
    line: "ProgressLine"
    _seen: list[dict[str, Any]] = field(init=False)
    _told: dict[str, Any] = field(default_factory=dict, init=False)
    """The service's latest estimates: they come with some steps alone."""

    def __post_init__(self) -> None:
        self._seen = self._lines()

    def show_new(self) -> None:
        """Show the steps that were trained since the last time."""
        lines = self._lines()
        for number, line in enumerate(lines):
            if line["kind"] == "step" and line not in self._seen[number : number + 1]:
                self._told |= {name: line[name] for name in ESTIMATES if name in line}
                self.line.show(line["step"], {**line, **self._told})
        self._seen = lines

    def _lines(self) -> list[dict[str, Any]]:
        from replay_trainer.job.metrics import MetricsFile

        return list(MetricsFile(self.job.output / "metrics.jsonl").lines())


def _print_profile(job: TrainConfig) -> None:
    """Where the time of the steps went, on average, without those in which everything is warmed up."""
    from rich.table import Table

    from replay_trainer.job.metrics import MetricsFile

    steps = [each for each in MetricsFile(job.output / "metrics.jsonl").lines() if "seconds" in each][_WARM_UP_STEPS:]
    if not steps:
        return
    table = Table("part of a step", "ms", "share", title=f"mean over {len(steps)} steps of rank 0")
    whole = sum(each["step_s"] for each in steps)
    names = list(dict.fromkeys(name for each in steps for name in each["seconds"]))
    parts = {name: sum(each["seconds"].get(name, 0.0) for each in steps) for name in names}
    for name, seconds in {**parts, "other": whole - sum(parts.values()), "step": whole}.items():
        table.add_row(name, f"{1e3 * seconds / len(steps):.2f}", f"{seconds / whole:.1%}")
    console.print(table)


@contextmanager
def _every_second(action: Any) -> Iterator[None]:
    """Do `action` once a second, and a last time at the end."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(1.0):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        action()


def main() -> None:
    app()
