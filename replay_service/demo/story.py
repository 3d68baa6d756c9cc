"""The demo, told from beginning to end."""

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Event

from rich.console import Console

from replay_service.corpus.format.manifest import Manifest
from replay_service.corpus.ingest.driver import ingest
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.corpus.shards.sources import Columns
from replay_service.demo.jobs import CORPUS, FAST, FULL, RUN, Scale, write_jobs
from replay_service.demo.materials import fetch_model, write_shards
from replay_service.demo.output import libraries_muted
from replay_service.demo.process import service_process
from replay_service.demo.report import Outcome, draw, result_table, say_where_to_look
from replay_service.progress import ingest_progress, progress_bar
from replay_service.ray_session import start_ray
from replay_trainer.cli import watch_training
from replay_trainer.client import ReplayClient
from replay_trainer.config import read_config


def tell(*, model: str | None, folder: Path, fast: bool, hold: bool) -> None:
    """Prepare, serve, train with and without rehearsal, and report; what is made stays in `folder`."""
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
            for title, job in zip(("tune with rehearsal", "tune without rehearsal"), jobs, strict=True):
                watch_training(read_config(job), console, title)
            _report(console, folder, scale, base_url)
            console.print(f"\nfinished in {time.monotonic() - began:.0f} s")
            say_where_to_look(console, folder, base_url, RUN, running=hold)
            if hold:
                _until_interrupted()


def prepare_only(*, model: str | None, folder: Path, corpora: Path, fast: bool, service_url: str) -> None:
    """Make the demo's corpus in `corpora` and write its jobs in `folder`, for a trainer elsewhere.

    Called again, it finds its work done; a service that serves `corpora` is not disturbed.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    scale = FAST if fast else FULL
    with libraries_muted(folder / "demo.log") as terminal:
        console = Console(file=terminal, highlight=False)
        model, manifest = _prepare(console, model, folder, corpora.absolute(), scale)
        job, _ = write_jobs(folder, model, manifest.precision, scale, service_url)
        console.print(f"job written to {job}", soft_wrap=True)


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left in its folder, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("text", f"corpora/{CORPUS}", "with_rehearsal", "without_rehearsal"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for journal in folder.glob("journal.sqlite*"):
        journal.unlink()


def _prepare(console: Console, model: str | None, folder: Path, corpora: Path, scale: Scale) -> tuple[str, Manifest]:
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
    )
    with ingest_progress(console, "ingest, score, stratify") as on_progress:
        return name, ingest(settings, on_progress)


def _report(console: Console, folder: Path, scale: Scale, base_url: str) -> None:
    rehearsed = Outcome.read("with rehearsal (mix_cd)", folder / "with_rehearsal", scale.global_batch_size)
    plain = Outcome.read("without rehearsal", folder / "without_rehearsal", scale.global_batch_size)
    with ReplayClient(base_url) as client:
        stats, strata = client.stats(RUN), client.strata(RUN)
    console.print()
    console.print(result_table(rehearsed, plain, stats))
    draw(folder / "forgetting.png", rehearsed, plain, strata)


def _until_interrupted() -> None:
    try:
        Event().wait()
    except KeyboardInterrupt:
        return
