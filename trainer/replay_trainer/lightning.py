"""Rehearsal in Lightning: a callback, and two lines in `training_step`.

class Tuned(LightningModule):
    def training_step(self, inputs, batch_idx):
        batch = self.rehearsing.mix(inputs)
        output = self.model(**batch.inputs)
        return self.rehearsing.loss(batch, output.loss, output.logits)

Trainer(callbacks=[RehearsalCallback(rehearsal)], ...).fit(Tuned(), loader)
"""

from typing import Any

import torch
from lightning import Callback

from replay_trainer.batches.added import Added
from replay_trainer.errors import InvalidTraining
from replay_trainer.frameworks import warn_if_untested
from replay_trainer.micro_batches import MicroBatches
from replay_trainer.plain import Rehearsal
from replay_trainer.rehearsal_loop import RehearsalLoop


class RehearsalCallback(Callback):
    """Gives a LightningModule the attribute `rehearsing` (`MicroBatches`) while it is fitted.

    Training that begins at a global step rewinds the run to it, so a checkpoint of Lightning resumes the rehearsal too.
    Reports are durable before a checkpoint is written. Figures go to the module's loggers at every optimizer step that
    Lightning logs.

    The module, or the one model among its parts, is checked against the corpus.

    Args:
        rehearsal: what to rehearse. Its run has injection_mode `add`, and as global_batch_size the rows of an optimizer
            step over all processes and accumulated micro-batches.
        tokenizer: is checked against the corpus, if it is given.

    Raises, from `Trainer.fit`:
        InvalidTraining, CorpusMismatch, ServiceError: as `Rehearsal.open` does; also where a batch is mixed in an
            evaluation, such as Lightning's sanity check before training.
    """

    def __init__(self, rehearsal: Rehearsal, tokenizer: Any = None) -> None:
        super().__init__()
        self.rehearsal = rehearsal
        self._tokenizer = tokenizer
        self._loop: RehearsalLoop | None = None
        self._is_last = True

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.rehearsing = _BeforeTraining()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        _check_optimizers(trainer, pl_module)
        if trainer.global_rank == 0:
            warn_if_untested("torch", "lightning")
        steps = trainer.estimated_stepping_batches
        loop = self._loop = self.rehearsal.open(
            trainer.global_rank,
            trainer.world_size,
            first_step=trainer.global_step,
            num_steps=int(steps) if steps != float("inf") else None,
            model=_model_of(pl_module),
            tokenizer=self._tokenizer,
        )
        if trainer.global_rank == 0:
            loop.rewind()
        # Nobody may ask for a batch before the run is rewound.
        trainer.strategy.barrier()
        loop.beginning = None
        pl_module.rehearsing = MicroBatches(
            loop,
            num_parts=lambda: int(trainer.accumulate_grad_batches),
            is_last=lambda: self._is_last,
            total=lambda values: torch.as_tensor(trainer.strategy.reduce(values, reduce_op="sum")),
        )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._is_last = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.loggers and self._is_last and trainer.global_step % trainer.log_every_n_steps == 0:
            figures = pl_module.rehearsing.figures(pl_module.device)
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self._loop is not None:
            pl_module.rehearsing.check_between_steps()
            self._loop.flush()
            trainer.strategy.barrier()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._loop is not None:
            self._loop.finish()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._close(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close(pl_module)

    def _close(self, pl_module: Any) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None
        pl_module.rehearsing = _BeforeTraining()


class _BeforeTraining:
    """What a module has as `rehearsing` while it is not trained."""

    def mix(self, inputs: Any) -> Added:
        raise InvalidTraining(
            "a batch is mixed while the module is not trained, as in Lightning's sanity check of the validation; "
            "rehearsed rows join batches of training alone: give the model the batch as it is in validation_step"
        )


def _model_of(pl_module: Any) -> Any:
    """The module, or the one of its parts that takes tokens; None where there are several or none."""
    found = [each for each in (pl_module, *pl_module.children()) if hasattr(each, "get_input_embeddings")]
    return found[0] if len(found) == 1 else None


def _check_optimizers(trainer: Any, pl_module: Any) -> None:
    if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
        raise InvalidTraining(
            "the rehearsal counts the steps of one optimizer that Lightning takes; in a module with several "
            "optimizers, or that optimizes by hand, mix rows yourself (replay_trainer.plain)"
        )
