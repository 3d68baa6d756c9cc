"""The command line `replay-trainer`."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from trainer.config import TrainConfig, read_config
from trainer.errors import TrainerError

if TYPE_CHECKING:
    from trainer.scoring import ScoringSettings

app = typer.Typer(
    help="Fine-tune a language model that does not forget.", no_args_is_help=True, pretty_exceptions_enable=False
)
console = Console(stderr=True)


@app.callback()
def _commands() -> None:
    """Fine-tune a language model that does not forget."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML file of the job; README shows one.")],
    service_url: Annotated[str | None, typer.Option(help="The replay service, instead of the file's.")] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run at the service, instead of the file's.")] = None,
    injection_ratio: Annotated[str | None, typer.Option(help="Share of rehearsal, instead of the file's.")] = None,
    num_steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of the file's.")] = None,
    output: Annotated[Path | None, typer.Option(help="Output folder, instead of the file's.")] = None,
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
    }
    try:
        job = read_config(config, {name: value for name, value in overrides.items() if value is not None})
        from replay_service.ray_session import start_ray

        start_ray()
        watch_training(job, console, "train")
    except TrainerError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(2)
    console.print(f"metrics in {job.output / 'metrics.jsonl'}", soft_wrap=True)


@app.command()
def score(
    source: Annotated[Path, typer.Argument(help="A .parquet, .jsonl or .jsonl.gz file, or a folder of them.")],
    model: Annotated[str, typer.Option(help="The base model: a local folder or a Hugging Face hub name.")],
    output: Annotated[Path, typer.Option(help="Parquet file to write; one that is there is replaced.")],
    seq_len: Annotated[int, typer.Option(help="Most tokens of a row; a longer one is cut at the right.")] = 512,
    text_column: Annotated[str | None, typer.Option(help="Column that holds the text, if not `text`.")] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="Column that holds the prompt, whose tokens do not count.")
    ] = None,
    response_column: Annotated[
        str | None, typer.Option(help="Column that holds the response, whose tokens count.")
    ] = None,
    precision: Annotated[
        Literal["auto", "float32", "bf16"], typer.Option(help="Arithmetic of the scoring; auto takes the faster.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Rows that the base model scores at once.")] = 8,
) -> None:
    """Add the base model's loss to every row of a fine-tuning set.

    The columns base_loss (mean nats per token), base_token_losses (nats of each token) and truncated are added, the
    others are kept. It is what FLOW weighs rows by.
    """
    if (prompt_column is None) != (response_column is None):
        raise typer.BadParameter("--prompt-column and --response-column go together; name both, or neither")
    if text_column is not None and response_column is not None:
        raise typer.BadParameter("a row is either a text or a prompt and a response; leave out --text-column")
    try:
        from trainer.scoring import ScoringSettings

        watch_scoring(
            ScoringSettings(
                source=source,
                output=output,
                model=model,
                response_column=response_column or text_column or "text",
                prompt_column=prompt_column,
                seq_len=seq_len,
                precision=precision,
                batch_size=batch_size,
            ),
            console,
        )
    except TrainerError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)


def watch_scoring(settings: "ScoringSettings", console: Console) -> None:
    """Score with a progress bar on `console`, and say what was done."""
    from replay_service.progress import progress_bar
    from trainer.scoring import score_rows

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


def watch_training(job: TrainConfig, console: Console, title: str) -> None:
    """Train with a progress bar on `console`."""
    from replay_service.progress import progress_bar
    from trainer.metrics import MetricsFile
    from trainer.ray_train import run_training

    with progress_bar(console) as bar:
        task = bar.add_task(title, total=job.num_steps, note="starting the workers")
        with _every_second(lambda: _show(bar, task, MetricsFile(job.output / "metrics.jsonl"))):
            run_training(job)


def _show(bar: Any, task: Any, metrics: Any) -> None:
    steps = [line for line in metrics.lines() if line["kind"] == "step"]
    if steps:
        loss = steps[-1]["target_loss"]
        note = "" if loss is None else f"target loss {loss:.2f}"
        bar.update(task, completed=steps[-1]["step"] + 1, note=note)


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
