"""One cell of a study: its job, trained by the loop of `replay-trainer train` in one process, and what came of it."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replay_service.language.model import load_model
from replay_service.language.precision import Precision
from replay_service.language.tokenizer import load_tokenizer
from replay_service.sampling.run_config import RunConfig
from replay_trainer.client import ReplayClient
from replay_trainer.config import TrainConfig
from replay_trainer.errors import NotFinite
from replay_trainer.job.evaluation import TARGET, HeldOut
from replay_trainer.job.feed import with_teacher
from replay_trainer.job.loop import Tuning, fine_tune
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.study.answers import Answers
from replay_trainer.study.cells import Cell, short_name
from replay_trainer.study.interpolation import interpolated_state
from replay_trainer.study.measuring import Scores, compared, heldout_of, load_scores, measured, save_scores, score
from replay_trainer.study.outcomes import Cost, Outcome, write_outcomes
from replay_trainer.study.questions import Encoded, encoded, read_questions, right_answers


@dataclass(frozen=True, slots=True)
class Task:
    """A cell, and what is alike for all of a study."""

    cell: Cell
    folder: Path
    precision: Precision
    heldout_rows: int
    num_threads: int
    choices: Path | None = None
    """The study's multiple-choice questions, if it has any."""

    @property
    def result(self) -> Path:
        """Where its outcomes are, once it is finished."""
        return self.folder / "results" / f"{self.cell.name}.json"

    @property
    def base_scores(self) -> Path:
        """Where the base model's scores of its target's held-out rows are; cells of one target share them."""
        return self.folder / "base" / f"{short_name(self.cell.target)}.npz"

    @property
    def base_answers(self) -> Path:
        """Likewise which questions the base model answers right."""
        return self.folder / "base" / f"{short_name(self.cell.target)}-answers.npy"


@dataclass(frozen=True, slots=True)
class LoneWorker:
    """A job of one process, as the training loop sees it; its checkpoints are in `folder`."""

    folder: Path
    device: torch.device
    rank: int = 0
    world_size: int = 1

    def wrap(self, model: Any) -> Any:
        return model

    def without_averaging(self, model: Any) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        return values

    def restore(self) -> dict[str, Any] | None:
        if not self._file.exists():
            return None
        state: dict[str, Any] = torch.load(self._file, map_location="cpu", weights_only=True)
        return state

    def save(self, state: dict[str, Any], step: int) -> None:
        part = self._file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self._file)

    @property
    def _file(self) -> Path:
        return self.folder / "checkpoint.pt"


def score_base(task: Task) -> None:
    """Score the held-out rows of a cell's target by the base model, and ask it the questions, unless it was done."""
    if task.base_scores.exists():
        return
    device = _prepared(task)
    heldout, model = _heldout(task), load_model(task.cell.job.model).to(device)
    questions = _questions(task)
    if questions is not None:
        task.base_answers.parent.mkdir(parents=True, exist_ok=True)
        np.save(task.base_answers, right_answers(model, questions, task.precision, device))
    save_scores(task.base_scores, _scores(model, heldout, task, device))


def run_cell(task: Task) -> None:
    """Train a cell and write its outcomes, unless they are there.

    Started again after it was killed, it goes on from its last checkpoint if the job makes any, else from its first
    step; the run at the service is rewound to that.

    Raises what `replay_trainer.job.loop.fine_tune` raises. Training that breaks down is an outcome.
    """
    if task.result.exists():
        return
    device, job = _prepared(task), with_teacher(task.cell.job)
    job.output.mkdir(parents=True, exist_ok=True)
    if job.rehearsal is not None:
        with ReplayClient(job.rehearsal.service_url) as client:
            client.ensure_run(job.rehearsal.run, job.rehearsal.corpus, job.run_settings())
    began = time.monotonic()
    try:
        tuning = fine_tune(job, task.precision, LoneWorker(job.output, device))
    except NotFinite as error:
        arms = (task.cell.arm, *dict(task.cell.interpolated))
        outcomes = [_outcome(task, arm, Cost(), failure=str(error)) for arm in arms]
    else:
        cost = _cost(job, tuning, time.monotonic() - began)
        outcomes = _outcomes(task, tuning.bare_model, cost, device)
    write_outcomes(task.result, outcomes)
    for name in ("checkpoint.pt", "checkpoint.part"):
        (job.output / name).unlink(missing_ok=True)


def _prepared(task: Task) -> torch.device:
    torch.set_num_threads(task.num_threads)
    return torch.device("cuda" if task.cell.job.use_gpu else "cpu")


def _heldout(task: Task) -> HeldOut:
    return heldout_of(task.cell.job, task.cell.data, task.heldout_rows)


def _questions(task: Task) -> Encoded | None:
    if task.choices is None:
        return None
    return encoded(read_questions(task.choices), load_tokenizer(task.cell.job.model), task.cell.data)


def _scores(model: Any, heldout: HeldOut, task: Task, device: torch.device) -> dict[str, Scores]:
    return {name: score(model, rows, task.precision, device) for name, rows in heldout.rows.items()}


def _outcomes(task: Task, model: Any, cost: Cost, device: torch.device) -> list[Outcome]:
    """Of the arm, and of those that interpolate its weights with the base model's."""
    cell, heldout, before, questions = task.cell, _heldout(task), load_scores(task.base_scores), _questions(task)
    models = [(cell.arm, None), *cell.interpolated]
    tuned = {name: each.clone() for name, each in model.state_dict().items()} if cell.interpolated else {}
    base = load_model(cell.job.model).to(device).state_dict() if cell.interpolated else {}
    outcomes = []
    for arm, share in models:
        if share is not None:
            model.load_state_dict(interpolated_state(base, tuned, share))
        after = _scores(model, heldout, task, device)
        domains, pretraining = measured(heldout, before, after)
        outcomes.append(
            _outcome(
                task,
                arm,
                cost,
                domains=tuple(domains),
                pretraining=pretraining,
                target_text=compared(before[TARGET], after[TARGET]),
                estimate=_estimate(cell.job) if share is None else None,
                answers=None if questions is None else _answers(model, questions, task, device),
            )
        )
    return outcomes


def _answers(model: Any, questions: Encoded, task: Task, device: torch.device) -> Answers:
    after = right_answers(model, questions, task.precision, device)
    return Answers.counted(questions.tasks, np.load(task.base_answers), after)


def _outcome(task: Task, arm: str, cost: Cost, **found: Any) -> Outcome:
    job, cell = task.cell.job, task.cell
    weight = uniform_weight(job) if arm == cell.arm else None
    return Outcome(
        arm,
        cell.target,
        cell.seed,
        weight == 1.0,
        cost,
        learning_rate=job.learning_rate,
        lora_rank=None if job.lora is None else job.lora.r,
        uniform_weight=weight if job.lora is None else None,
        **found,
    )


def uniform_weight(job: TrainConfig) -> float | None:
    """Weight of a rehearsed row where the job rehearses uniformly with cross-entropy, or not at all; else None."""
    if job.flow is not None or job.ldifs is not None or job.l2_start:
        return None
    if job.rehearsal is None:
        return 1.0
    run, rehearsal = RunConfig.from_dict(job.run_settings()), job.rehearsal
    is_constant = not run.is_auto and run.schedule.curve == "constant"
    is_plain = is_constant and rehearsal.rehearsal_loss == "cross_entropy" and run.policy == "uniform"
    return rehearsal.rehearsal_weight if is_plain else None


def _cost(job: TrainConfig, tuning: Tuning, training_s: float) -> Cost:
    """Floating-point operations: two a weight and token in a forward pass, as many for the gradients of activations,
    and as many for those of the weights that learn (Kaplan et al., "Scaling Laws for Neural Language Models", 2020,
    which counts 6 N a token). The base model's forward passes, for LDIFS and for a teacher, are added. Embeddings are
    counted as matrices; attention over the tokens of a row is left out.
    """
    steps = [line for line in MetricsFile(job.output / "metrics.jsonl").lines() if line["kind"] == "step"]
    totals = {
        name: sum(line[name] for line in steps)
        for name in ("num_rows", "num_rehearsed", "num_tokens", "num_rehearsed_tokens")
    }
    parameters = list(tuning.bare_model.parameters())
    num_weights = sum(each.numel() for each in parameters)
    num_learned = sum(each.numel() for each in parameters if each.requires_grad)
    flops = (4.0 * num_weights + 2.0 * num_learned) * totals["num_tokens"]
    if job.ldifs is not None:
        flops += 2.0 * num_weights * (totals["num_tokens"] - totals["num_rehearsed_tokens"])
    if job.rehearsal is not None and job.rehearsal.needs_base_model:
        flops += 2.0 * num_weights * totals["num_rehearsed_tokens"]
    num_rehearsed_rows = totals.pop("num_rehearsed")
    return Cost(
        **totals,
        num_rehearsed_rows=num_rehearsed_rows,
        training_s=training_s,
        flops=flops,
        num_parameters=num_weights,
    )


def _estimate(job: TrainConfig) -> dict[str, Any] | None:
    if job.rehearsal is None:
        return None
    with ReplayClient(job.rehearsal.service_url) as client:
        found: dict[str, Any] = client.stats(job.rehearsal.run)["forgetting"]
    return found
