"""The command line `replay-trainer`."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from trainer.config import TrainConfig, read_config
from trainer.errors import TrainerError

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
