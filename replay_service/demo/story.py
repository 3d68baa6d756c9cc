"""The demo, told from beginning to end."""

import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event

from rich.console import Console

from replay_service.corpus.format.manifest import Manifest
from replay_service.corpus.ingest.driver import ingest
from replay_service.corpus.ingest.progress_line import ingest_progress
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.corpus.shards.sources import Columns
from replay_service.demo.distance import distances
from replay_service.demo.jobs import CORPUS, FAST, FULL, JOBS, RECOMMENDED, RUN, TOPK, Scale, write_jobs
from replay_service.demo.materials import fetch_model, write_shards
from replay_service.demo.output import libraries_muted
from replay_service.demo.process import service_process
from replay_service.demo.report import Outcome, draw, in_words, result_table, say_where_to_look
from replay_service.progress import progress_bar
from replay_service.ray_session import start_ray
from replay_trainer.cli import watch_training
from replay_trainer.client import ReplayClient
from replay_trainer.config import read_config


def tell(*, model: str | None, folder: Path, fast: bool, hold: bool) -> None:
    """Prepare, serve, train the three jobs, and report; what is made stays in `folder`."""
    began = time.monotonic()
    folder = folder.absolute()
    scale = FAST if fast else FULL
    _clear(folder)
    with libraries_muted(folder / "demo.log") as terminal:
        console = Console(file=terminal, highlight=False)
        model, manifest = _prepare(console, model, folder, folder / "corpora", scale)
        with ExitStack() as running:
            with progress_bar(console) as bar:
                task = bar.add_task("start the service", total=None, note="")
                base_url = running.enter_context(service_process(folder))
                bar.update(task, total=1, completed=1, note=base_url)
            jobs = write_jobs(folder, model, manifest.precision, scale, base_url)
            for job, file in jobs.items():
                watch_training(read_config(file), console, f"tune, {job.name}")
            _report(console, folder, scale, base_url, _distances(console, jobs.values()))
            console.print(f"\nfinished in {time.monotonic() - began:.0f} s")
            say_where_to_look(console, folder, base_url, RUN, running=hold)
            if hold:
                _until_interrupted()


def prepare_only(
    *, model: str | None, folder: Path, corpora: Path, corpora_url: str | None, fast: bool, service_url: str
) -> None:
    """Make the demo's corpus in `corpora`, or at `corpora_url`, and write its jobs, for a trainer elsewhere.

    Called again, it finds its work done; a service that serves `corpora` is not disturbed.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    scale = FAST if fast else FULL
    with libraries_muted(folder / "demo.log") as terminal:
        console = Console(file=terminal, highlight=False)
        model, manifest = _prepare(console, model, folder, corpora.absolute(), scale, corpora_url)
        jobs = write_jobs(folder, model, manifest.precision, scale, service_url)
        console.print(f"job written to {jobs[RECOMMENDED]}", soft_wrap=True)


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left in its folder, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("text", f"corpora/{CORPUS}", *(job.output for job in JOBS)):
        shutil.rmtree(folder / name, ignore_errors=True)
    for journal in folder.glob("journal.sqlite*"):
        journal.unlink()


def _prepare(
    console: Console, model: str | None, folder: Path, corpora: Path, scale: Scale, corpora_url: str | None = None
) -> tuple[str, Manifest]:
    with progress_bar(console) as bar:
        task = bar.add_task("fetch model and text", total=None, note="the first time takes longer")
        name = model or str(fetch_model())
        if not (folder / "text").exists():
            write_shards(folder / "text", scale.amounts, scale.seed)
        bar.update(task, total=1, completed=1, note=Path(name).name)
    with progress_bar(console) as bar:
        task = bar.add_task("start Ray", total=None, note="")
        start_ray()
        bar.update(task, total=1, completed=1)
    settings = IngestSettings(
        source=str(folder / "text" / "pretraining"),
        folder=corpora,
        name=CORPUS,
        model=name,
        seq_len=scale.seq_len,
        columns=Columns(domain="domain"),
        num_quantiles=scale.num_quantiles,
        corpora_url=corpora_url,
        topk=TOPK,
    )
    with ingest_progress(console, "ingest, score, stratify") as on_progress:
        return name, ingest(settings, on_progress)


def _distances(console: Console, files: Iterable[Path]) -> list[float]:
    """Of each job's tuned model, which is removed then: it is large, and the demo needs it no more."""
    jobs = [read_config(each) for each in files]
    found: list[float] = []
    with progress_bar(console) as bar:
        task = bar.add_task("compare with the base model", total=len(jobs), note="")
        for job, distance in zip(jobs, distances(jobs), strict=True):
            found.append(distance)
            shutil.rmtree(job.output / "model")
            bar.update(task, completed=len(found), note=job.output.name)
    return found


def _report(console: Console, folder: Path, scale: Scale, base_url: str, moved: Sequence[float]) -> None:
    outcomes = [
        Outcome.read(job.name, folder / job.output, scale.global_batch_size, distance)
        for job, distance in zip(JOBS, moved, strict=True)
    ]
    with ReplayClient(base_url) as client:
        strata = client.strata(RUN)
    console.print()
    console.print(result_table(outcomes))
    console.print(f"\n{in_words(outcomes)}", soft_wrap=True)
    draw(folder / "forgetting.png", outcomes, strata)


def _until_interrupted() -> None:
    try:
        Event().wait()
    except KeyboardInterrupt:
        return
