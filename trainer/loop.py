"""The training loop, in terms of a worker that knows its rank and how to talk to the others.

    batch -> forward -> losses -> report -> backward -> step

Rehearsed rows are measured in the training forward pass, before the optimizer step: reporting costs no second pass.
"""

import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from replay_service.language.losses import TokenLosses, token_losses
from replay_service.language.model import autocast, load_model
from replay_service.language.precision import Precision
from replay_service.language.tokenizer import load_tokenizer
from trainer.config import TrainConfig
from trainer.evaluation import HeldOut
from trainer.feed import Feed, load_heldout, open_feed
from trainer.metrics import MetricsFile
from trainer.mixing import MixedBatch, loss_rows


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

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of every rank's `values`."""
        ...

    def restore(self) -> dict[str, Any] | None:
        """What the last checkpoint holds, or None."""
        ...

    def save(self, state: dict[str, Any], step: int) -> None:
        """Keep rank 0's `state` as a checkpoint; every rank calls this."""
        ...


@dataclass(slots=True)
class Tuning:
    """What training changes."""

    model: Any
    optimizer: torch.optim.Optimizer
    scheduler: Any

    @property
    def bare_model(self) -> Any:
        return getattr(self.model, "module", self.model)

    def state_dict(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "model": self.bare_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bare_model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def fine_tune(config: TrainConfig, precision: Precision, worker: Worker) -> None:
    """Train for `config.num_steps` steps, from the last checkpoint if there is one."""
    tokenizer = load_tokenizer(config.model)
    tuning = _start(config, worker)
    state = worker.restore()
    first_step = 0
    if state is not None:
        tuning.load_state_dict(state)
        first_step = state["step"]
    metrics = MetricsFile(config.output / "metrics.jsonl")
    if worker.rank == 0:
        metrics.begin(first_step)
    heldout = load_heldout(config.data, tokenizer)
    with open_feed(config, tokenizer, worker.rank, worker.world_size) as feed:
        if state is not None:
            feed.load_state_dict(state["feed"])
        if worker.rank == 0:
            feed.rewind(first_step)
        # Nobody may ask for a batch before the run is rewound.
        worker.sum_over_ranks(torch.zeros(1, device=worker.device))
        for step in range(first_step, config.num_steps):
            _evaluate_if_due(config, precision, worker, tuning, heldout, metrics, step)
            _train_step(config, precision, worker, tuning, feed, metrics, step)
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
                feed.flush()
                worker.save({**tuning.state_dict(step + 1), "feed": feed.state_dict()}, step + 1)
        feed.flush()
    _evaluate_if_due(config, precision, worker, tuning, heldout, metrics, config.num_steps)
    if config.save_model and worker.rank == 0:
        tuning.bare_model.save_pretrained(config.output / "model")
        tokenizer.save_pretrained(config.output / "model")


def _start(config: TrainConfig, worker: Worker) -> Tuning:
    from transformers import get_scheduler

    torch.manual_seed(config.seed)
    model = worker.wrap(load_model(config.model).train())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    return Tuning(model, optimizer, get_scheduler(name, optimizer, config.warmup_steps, config.num_steps))


def _train_step(
    config: TrainConfig,
    precision: Precision,
    worker: Worker,
    tuning: Tuning,
    feed: Feed,
    metrics: MetricsFile,
    step: int,
) -> None:
    began = time.perf_counter()
    batch = feed.next(step).to(worker.device)
    waited_s = time.perf_counter() - began
    # Keyed by step and rank, so that dropout needs no generator state in a checkpoint.
    torch.manual_seed(hash((config.seed, step, worker.rank)))
    with autocast(precision, worker.device):
        logits = tuning.model(input_ids=batch.input_ids_BT, use_cache=False).logits
    losses = token_losses(logits, batch.input_ids_BT, batch.length_B)
    feed.report(loss_rows(batch, losses, step, worker.rank))
    totals = worker.sum_over_ranks(_totals(batch, losses))
    torch.autograd.backward(training_loss(losses, totals[1] + totals[3], worker.world_size))
    torch.nn.utils.clip_grad_norm_(tuning.model.parameters(), config.max_grad_norm)
    tuning.optimizer.step()
    tuning.scheduler.step()
    tuning.optimizer.zero_grad()
    if worker.rank == 0:
        metrics.append("step", step, **_summary(totals), waited_s=waited_s, step_s=time.perf_counter() - began)


def training_loss(losses: TokenLosses, num_tokens: Tensor, world_size: int) -> Tensor:
    """This rank's part of the mean loss over the predictions of the global batch, nats per token; differentiable.

    Gradients are averaged over the ranks, so the part is the rank's sum times `world_size` over `num_tokens`, the
    predictions of all ranks. A row of length 0, which stands for a sample that the service could not read, has no
    prediction: it adds to neither the sum nor the count, and the others weigh as if it were not there.
    """
    return losses.nll_BS.sum() * world_size / num_tokens.clamp(min=1)


def _totals(batch: MixedBatch, losses: TokenLosses) -> Tensor:
    """float64 [5]: nats and tokens of the fine-tuning rows, nats and tokens of the rehearsed rows, rehearsed rows."""
    nll, tokens, first = losses.nll_BS.detach().double(), losses.mask_BS.double(), batch.num_target
    parts = (nll[:first].sum(), tokens[:first].sum(), nll[first:].sum(), tokens[first:].sum())
    return torch.stack([*parts, torch.tensor(float(batch.num_rehearsed), dtype=torch.float64, device=nll.device)])


def _summary(totals: Tensor) -> dict[str, float | int | None]:
    target_nll, target_tokens, rehearsed_nll, rehearsed_tokens, num_rehearsed = totals.tolist()
    return {
        "target_loss": target_nll / target_tokens if target_tokens else None,
        "rehearsed_loss": rehearsed_nll / rehearsed_tokens if rehearsed_tokens else None,
        "num_rehearsed": int(num_rehearsed),
        "num_tokens": int(target_tokens + rehearsed_tokens),
        "num_rehearsed_tokens": int(rehearsed_tokens),
    }


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
