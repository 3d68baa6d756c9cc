"""The training loop, in terms of a worker that knows its rank and how to talk to the others.

    batch -> forward -> losses -> report -> backward -> step

Rehearsed rows are measured in the training forward pass, before the optimizer step: reporting costs no second pass.
"""

import contextlib
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from replay_service.language.model import autocast, load_model
from replay_service.language.model_parts import LanguageLosses, split_model
from replay_service.language.precision import Precision
from replay_service.language.tokenizer import load_tokenizer
from replay_service.language.trial import check_model
from replay_trainer.batches.mixing import loss_rows
from replay_trainer.config import LdifsConfig, TrainConfig
from replay_trainer.errors import InvalidTraining, NotFinite
from replay_trainer.estimates import figures
from replay_trainer.job.adapters import Adapters
from replay_trainer.job.evaluation import HeldOut
from replay_trainer.job.feed import Feed, document_ends, load_heldout, open_feed, with_teacher
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.job.objective import BaseModel, Counts, Objective
from replay_trainer.job.stopwatch import Stopwatch
from replay_trainer.job.tracking import open_trackers
from replay_trainer.methods.l2_start import StartPenalty
from replay_trainer.methods.ldifs import LANGUAGE, FeatureDrift
from replay_trainer.methods.teacher import Teacher, frozen_copy

MOST_SKIPPED: Final = 20
"""Steps in a row; then training has broken down, and to go on would only cost."""


class Worker(Protocol):
    """One process of the job."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def wrap(self, model: Any) -> Any:
        """The model, its gradients averaged over the ranks."""
        ...

    def without_averaging(self, model: Any) -> contextlib.AbstractContextManager[object]:
        """Within it, backward passes of the wrapped model add up on this rank alone."""
        ...

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of every rank's `values`."""
        ...

    def restore(self) -> dict[str, Any] | None:
        """The content of the last checkpoint, or None."""
        ...

    def save(self, state: dict[str, Any], step: int) -> None:
        """Keep rank 0's `state` as a checkpoint; every rank calls this."""
        ...


@dataclass(frozen=True, slots=True)
class _Job:
    """The parts of training that stay the same from step to step."""

    config: TrainConfig
    precision: Precision
    worker: Worker
    objective: Objective


@dataclass(slots=True)
class Tuning:
    """The parts that training changes."""

    bare_model: Any
    model: Any
    """The module that runs: the bare model within the wrappers that take losses and average gradients, if any."""
    optimizer: torch.optim.Optimizer
    scheduler: Any
    adapters: Adapters | None = None
    """The adapters, which alone learn, if there are any."""
    penalty: StartPenalty | None = None
    num_skipped: int = 0
    """The latest steps in a row that were skipped."""

    def take_step(self, max_grad_norm: float) -> bool:
        """Go down the gradient, clipped to this norm; or leave everything as it is where that is not finite.

        A single row whose loss is not finite would otherwise leave no weight that is a number. Gradients are averaged,
        so that all ranks decide alike.

        Returns:
            Whether the step was taken.

        Raises:
            NotFinite: when `MOST_SKIPPED` steps in a row could not be.
        """
        if self.penalty is not None:
            self.penalty.add_gradient()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm)
        is_finite = bool(norm.isfinite())
        if is_finite:
            self.optimizer.step()
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.num_skipped = 0 if is_finite else self.num_skipped + 1
        if self.num_skipped == MOST_SKIPPED:
            raise NotFinite(
                f"the gradient was not finite in {MOST_SKIPPED} steps in a row, which were skipped; go on from a "
                'checkpoint with a lower learning rate, or with precision = "float32", or look for rows of the '
                "fine-tuning data whose loss is not finite: metrics.jsonl says in which steps there were any"
            )
        return is_finite

    def state_dict(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            self._name: self._learned.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._name not in state:
            raise InvalidTraining(
                f"the checkpoint does not hold the weights of the {self._name} that this job tunes: it was made with "
                "[lora] and this job has none, or the other way round; put [lora] back as it was, or choose another "
                "output folder"
            )
        self._learned.load_state_dict(state[self._name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def save(self, folder: Path) -> None:
        """The tuned model, or its adapters, for the libraries that they are of."""
        if self.adapters is None:
            self.bare_model.save_pretrained(folder)
        else:
            self.adapters.save(folder)

    @property
    def _name(self) -> str:
        return "model" if self.adapters is None else "adapters"

    @property
    def _learned(self) -> Any:
        return self.bare_model if self.adapters is None else self.adapters


def fine_tune(config: TrainConfig, precision: Precision, worker: Worker) -> Tuning:
    """Train for `config.num_steps` steps, from the last checkpoint if there is one.

    Returns:
        The tuned model, and what tuned it.

    Raises:
        InvalidTraining: when the checkpoint is of a later step than the last, or of other weights.
    """
    config = with_teacher(config)
    tokenizer = load_tokenizer(config.model)
    state = worker.restore()
    first_step = 0 if state is None else state["step"]
    if first_step > config.num_steps:
        raise InvalidTraining(
            f"the checkpoint in {config.output} is of step {first_step}, but the job has num_steps {config.num_steps}; "
            f"give it {first_step} steps or more, or another output folder to begin anew"
        )
    job, tuning = _start(config, precision, worker)
    if state is not None:
        tuning.load_state_dict(state)
    metrics = MetricsFile(config.output / "metrics.jsonl")
    if worker.rank == 0:
        metrics.begin(first_step)
    heldout = load_heldout(config.data, tokenizer, document_ends(config, tokenizer))
    run = "alone" if config.rehearsal is None else config.rehearsal.run
    with (
        open_feed(config, tokenizer, worker.rank, worker.world_size) as feed,
        open_trackers(config.trackers, config.output, run, rank=worker.rank) as trackers,
    ):
        trackers.begin(config.model_dump(mode="json"), first_step)
        if state is not None:
            feed.load_state_dict(state["feed"])
        if worker.rank == 0:
            feed.rewind()
        # Nobody may ask for a batch before the run is rewound.
        worker.sum_over_ranks(torch.zeros(1, device=worker.device))
        for step in range(first_step, config.num_steps):
            _evaluate_if_due(config, precision, worker, tuning, heldout, metrics, step)
            values = {**_train_step(job, tuning, feed, step), **feed.without_effect()}
            if worker.rank == 0:
                values |= {} if feed.estimates is None else feed.estimates.after(step)
                metrics.append("step", step, **values)
                trackers.log(step, figures(values))
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
                worker.save({**tuning.state_dict(step + 1), "feed": feed.state_dict()}, step + 1)
        feed.finish()
    _evaluate_if_due(config, precision, worker, tuning, heldout, metrics, config.num_steps)
    if config.save_model and worker.rank == 0:
        tuning.save(config.output / "model")
        tokenizer.save_pretrained(config.output / "model")
    return tuning


def _start(config: TrainConfig, precision: Precision, worker: Worker) -> tuple[_Job, Tuning]:
    from transformers import get_scheduler

    torch.manual_seed(config.seed)
    bare_model = load_model(config.model).train().to(worker.device)
    with autocast(precision, worker.device):
        check_model(bare_model, config.data.seq_len)
    adapters = None if config.lora is None else Adapters(bare_model, config.lora)
    is_taught = config.rehearsal is not None and config.rehearsal.needs_base_model
    needs_copy = adapters is None and (is_taught or config.ldifs is not None)
    base = frozen_copy(bare_model) if needs_copy else None
    drift = None if config.ldifs is None else _drift(config.ldifs, bare_model, adapters, base)
    teacher = _teacher(bare_model, adapters, base, config.chunked_head) if is_taught else None
    model = worker.wrap(LanguageLosses(bare_model) if config.chunked_head else bare_model)
    learned = [each for each in bare_model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    rehearsal_loss = "cross_entropy" if config.rehearsal is None else config.rehearsal.rehearsal_loss
    objective = Objective(
        precision, rehearsal_loss, drift, Stopwatch(worker.device, config.profile), config.chunked_head, teacher
    )
    scheduler = get_scheduler(name, optimizer, config.warmup_steps, config.num_steps)
    penalty = StartPenalty(learned, config.l2_start) if config.l2_start else None
    tuning = Tuning(bare_model, model, optimizer, scheduler, adapters, penalty)
    return _Job(config, precision, worker, objective), tuning


def _drift(config: LdifsConfig, model: Any, adapters: Adapters | None, base: Any) -> FeatureDrift:
    """With adapters the base model is the model without them, and needs no copy."""
    form = replace(LANGUAGE, weight=config.weight)
    if adapters is not None:
        layers = None if config.layers is None else [adapters.path_of(each) for each in config.layers]
        return FeatureDrift(adapters.with_model, base=None, form=form, layers=layers)
    return FeatureDrift(model, base=base, form=form, layers=config.layers)


def _teacher(model: Any, adapters: Adapters | None, base: Any, chunked_head: bool) -> BaseModel:
    teacher = Teacher(model if adapters is None else adapters.with_model, base=base)
    return BaseModel(teacher, split_model(model if base is None else base) if chunked_head else None)


def _train_step(job: _Job, tuning: Tuning, feed: Feed, step: int) -> dict[str, Any]:
    """Train on the batch of a step; what was measured, over all ranks."""
    config, worker, watch = job.config, job.worker, job.objective.stopwatch
    began = time.perf_counter()
    with watch("data"):
        batch = feed.next(step)
        counts = Counts.of(batch).to(worker.device)
        batch = batch.to(worker.device)
    waited_s = time.perf_counter() - began
    # Keyed by step and rank, so that dropout needs no generator state in a checkpoint.
    torch.manual_seed(hash((config.seed, step, worker.rank)))
    of_job = Counts(*worker.sum_over_ranks(counts).tolist())
    feed.count(step, of_job.trained())
    # Of each part the nats, see Measured, and the rows whose loss is not finite.
    sums = torch.zeros(4, dtype=torch.float64, device=worker.device)
    pieces = list(batch.pieces(config.micro_batch_size))
    for number, piece in enumerate(pieces):
        with contextlib.nullcontext() if number == len(pieces) - 1 else worker.without_averaging(tuning.model):
            measured = job.objective.measure(tuning.model, piece, of_job, worker.world_size)
            with watch("report"):
                feed.report(loss_rows(piece, measured.losses, step, worker.rank))
            with watch("backward"):
                torch.autograd.backward(measured.loss)
        sums += torch.cat([measured.nats, measured.num_nonfinite_rows[None]])
    with watch("optimizer"):
        was_skipped = not tuning.take_step(config.max_grad_norm)
    values = _summary(of_job, worker.sum_over_ranks(sums), job.objective.drift is not None)
    values["was_skipped"] = was_skipped
    values |= {"num_workers": worker.world_size, "waited_s": waited_s, "step_s": time.perf_counter() - began}
    return {**values, "seconds": watch.take()} if config.profile else values


def _summary(of_job: Counts, sums: Tensor, has_drift: bool) -> dict[str, Any]:
    target_nats, rehearsed_nats, drift, num_nonfinite = sums.tolist()
    values = {
        "target_loss": _mean(target_nats, of_job.target),
        "rehearsed_loss": _mean(rehearsed_nats, of_job.rehearsed),
        "num_nonfinite_rows": int(num_nonfinite),
        "num_rows": int(of_job.rows),
        "num_rehearsed": int(of_job.rehearsed_rows),
        "num_tokens": int(of_job.target + of_job.rehearsed),
        "num_rehearsed_tokens": int(of_job.rehearsed),
    }
    if has_drift:
        values["drift"] = _mean(drift, of_job.target_tokens)
    return values


def _mean(total: float, count: float) -> float | None:
    """None where there is nothing to take the mean of, or it is not finite, which JSON cannot say."""
    return total / count if count and math.isfinite(total) else None


def _evaluate_if_due(
    config: TrainConfig,
    precision: Precision,
    worker: Worker,
    tuning: Tuning,
    heldout: HeldOut,
    metrics: MetricsFile,
    step: int,
) -> None:
    every = config.evaluate_every or config.num_steps
    if not heldout.rows or (step % every and step != config.num_steps):
        return
    losses = heldout.losses(
        tuning.bare_model, precision, worker.device, worker.rank, worker.world_size, worker.sum_over_ranks
    )
    if worker.rank == 0:
        metrics.append("evaluation", step, losses=losses)
