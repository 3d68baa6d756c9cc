"""Rehearsal in `transformers.Trainer`, and in the trainers that are made of it, such as trl's SFTTrainer.

    trainer = RehearsalTrainer(rehearsal=Rehearsal(client, "my-run"), model=model, args=args, train_dataset=rows)
    trainer.train()

    class RehearsalSFTTrainer(RehearsalMixin, SFTTrainer): ...

Rehearsed rows are added, after the collator, to the micro-batches of each optimizer step, spread evenly; none of the
dataset's rows is left out. So gradient accumulation does not change what is rehearsed, nor does a short step at the end
of an epoch. The loss is the trainer's own, over all rows, and its mean counts rehearsed predictions too.

What is added follows from the corpus: rows of tokens, or samples with a label beside `pixel_values` or `input_ids`.
Rehearsed rows are measured by the logits of the training forward pass. They take a pass of their own, in the same
backward pass, where that saves a fifth of the tokens, and in every trainer whose `compute_loss` is its own, as that of
trl's SFTTrainer, which may give no logits (`replay_trainer.batches.apart`). Its batches stay as they are.

With `Rehearsal(..., rehearsal_loss="distill")` the teacher is the model as the Trainer is given it: with peft its
adapters are switched off, otherwise it is copied.

Batches may be flat, as DataCollatorWithFlattening makes them: rehearsed rows join the one row, without padding. Whether
the model keeps samples apart is tried before the first one (`replay_trainer.batches.padding_free`).
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from replay_trainer.batches.added import Added
from replay_trainer.batches.apart import WORTH, ApartInputs
from replay_trainer.batches.samples import MixedSamples
from replay_trainer.errors import InvalidTraining
from replay_trainer.frameworks import warn_if_untested
from replay_trainer.hf_checks import check_trainer
from replay_trainer.loss_sums import LossSums
from replay_trainer.methods.teacher import Teacher
from replay_trainer.own_run import OwnRun
from replay_trainer.plain import Rehearsal
from replay_trainer.rehearsal_loop import RehearsalLoop
from replay_trainer.trained import Trained

_MIXED: Final = "mixed_with_rehearsal"
"""Key of a micro-batch under which its rehearsed rows travel from the loader to the loss."""

_EVAL: Final = "eval_"
"""Beginning of the names of figures from an evaluation."""

_ALWAYS_LOGGED: Final = frozenset(Trained().metrics())

_LIBRARIES: Final = ("torch", "transformers", "accelerate")

_WITHOUT_CACHE: Final = {"use_cache": False}

_AnyTrainer: Any = object


class RehearsalMixin(_AnyTrainer):  # type: ignore[misc]
    """Goes before a Trainer in the bases of a class.

    It resumes as the Trainer does: training that begins at a global step rewinds the run to it. Reported losses are
    durable before a checkpoint is written.

    Args:
        rehearsal: what to rehearse. Its run has injection_mode `add`, and as global_batch_size the rows of an
            optimizer step: per_device_train_batch_size * gradient_accumulation_steps * processes; without the
            processes where accelerate splits batches between them (`split_batches`). Without it, the trainer makes a
            run of its own from plain settings (`replay_trainer.own_run`): those of the class (`rehearsal_settings`),
            of the attribute `rehearsal` of the arguments, or of the environment variable REPLAY_REHEARSAL.
        args, options: those of the Trainer.

    Raises, from the constructor:
        InvalidTraining: when nothing says what to rehearse, or the Trainer learns from preferences or rewards, has a
            loss other than the model's, other labels than `labels`, or splits rows between devices.

    Raises, from `train`:
        InvalidTraining: when the run is made for something else, or a batch or the model's output cannot be mixed.
        CorpusMismatch: when the Trainer's tokenizer is not the corpus's, or its model does not know all of its tokens.
        TrainerError: as RehearsalLoop does.
    """

    rehearsal_settings: Mapping[str, Any] | None = None
    """Settings of the rehearsal for a program that gives no `rehearsal`; see `replay_trainer.own_run`."""

    def __init__(self, *args: Any, rehearsal: Rehearsal | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._own_run: OwnRun | None = None
        if rehearsal is None:
            self._own_run = OwnRun.of(self.rehearsal_settings, self.args, os.environ)
            rehearsal = self._own_run.rehearsal()
        self.rehearsal = self._with_teacher(rehearsal)
        self._rehearsal_loop: RehearsalLoop | None = None
        self._loss_sums = LossSums()
        check_trainer(self)
        self.add_callback(_Hooks(self))

    def _with_teacher(self, rehearsal: Rehearsal) -> Rehearsal:
        """The rehearsal with a teacher: the model as the Trainer is given it, before a checkpoint may replace it."""
        is_given = rehearsal.rehearsal_loss == "cross_entropy" or rehearsal.teacher is not None
        return rehearsal if is_given else replace(rehearsal, teacher=Teacher.of(self.model))

    def train(self, *args: Any, **options: Any) -> Any:
        try:
            return super().train(*args, **options)
        finally:
            self._close_rehearsal()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of an optimizer step, with rehearsed rows, and how many predictions they hold."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._rehearsal_loop is None or not batches:
            return batches, num_items
        loop, step = self._rehearsal_loop, self.state.global_step
        is_apart = self._is_apart(loop, step, batches)
        if not is_apart:
            # Every process has batches of the same kind, so all of them check, or none.
            loop.check_model(self.model_wrapped, batches[0])
        mixed = loop.spread(step, batches, apart=is_apart)
        if num_items is not None:
            apart = [{"labels": each.rehearsed_labels.to(device)} for each in mixed if isinstance(each, ApartInputs)]
            num_items = self._get_num_items_in_batch([*(each.inputs for each in mixed), *apart], device)
        # Also where this rank rehearses nothing: all ranks must run the model alike, or they wait for each other.
        return [{**each.inputs, _MIXED: each} for each in mixed], num_items

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **options: Any,
    ) -> Any:
        """The Trainer's loss of all rows; those of the rehearsed ones are reported."""
        mixed: Added | None = inputs.pop(_MIXED, None)
        if num_items_in_batch is not None:
            options["num_items_in_batch"] = num_items_in_batch
        if mixed is None or self._rehearsal_loop is None:
            return super().compute_loss(model, inputs, **_asked(return_outputs), **options)
        if isinstance(mixed, ApartInputs):
            return self._loss_of_two_passes(mixed, model, inputs, return_outputs, **options)
        # The same on all ranks: a Trainer may give outputs by another pass, in which ranks wait for each other.
        needs_outputs = return_outputs or mixed.is_rehearsed or isinstance(mixed, MixedSamples)
        outputs = None
        loss = super().compute_loss(model, inputs, **_asked(needs_outputs), **options)
        if needs_outputs:
            loss, outputs = loss
        if isinstance(mixed, MixedSamples):
            share: Tensor | float = mixed.share_in(loss, _logits(outputs))
        else:
            share = self._share_of_a_prediction(num_items_in_batch, mixed)
        nats, num_predictions = loss.detach() / share, mixed.num_predictions
        if mixed.num_rehearsed:
            # The base model of distilled rows must run with the same mixed precision as the model in training.
            with self.accelerator.autocast():
                losses = mixed.losses(_logits(outputs))
            self._rehearsal_loop.report(mixed, losses)
            rehearsed_nats, num_rehearsed = losses.total()
            self._loss_sums.add_rehearsed(rehearsed_nats, num_rehearsed)
            nats, num_predictions = nats - rehearsed_nats.detach(), num_predictions - num_rehearsed
            loss = mixed.weigh(loss, losses, share)
        self._loss_sums.add_target(nats, num_predictions)
        return (loss, outputs) if return_outputs else loss

    def _is_apart(self, loop: RehearsalLoop, step: int, batches: list[Any]) -> bool:
        """Whether the rehearsed rows of a step take a forward pass of their own, in all processes alike.

        They do where the Trainer's loss is its own, which may give no logits, and where that saves enough tokens.
        """
        if super().compute_loss.__func__ is not Trainer.compute_loss:
            return True
        saved = torch.tensor(loop.tokens_saved(step, batches), device=self.args.device)
        tokens_saved, tokens = (self._total(saved) if self.accelerator.num_processes > 1 else saved).tolist()
        return bool(tokens_saved >= WORTH * tokens)

    def _loss_of_two_passes(
        self, mixed: ApartInputs, model: Any, inputs: dict[str, Any], return_outputs: bool, **options: Any
    ) -> Any:
        """The Trainer's loss of its own rows, and that of the rehearsed rows in a pass of their own."""
        assert self._rehearsal_loop is not None
        found = super().compute_loss(model, inputs, **_asked(return_outputs), **options)
        loss, outputs = found if return_outputs else (found, None)
        num_items, num_target = options.get("num_items_in_batch"), mixed.num_target_predictions.to(loss.device)
        share = None if num_items is None else self._share_of_a_prediction(num_items, mixed)
        self._loss_sums.add_target(loss.detach() * num_target if share is None else loss.detach() / share, num_target)
        if mixed.is_rehearsed:
            rehearsed = {name: each.to(loss.device) for name, each in mixed.rehearsed_inputs.items()}
            logits = _logits(model(**rehearsed, **_WITHOUT_CACHE))
            with self.accelerator.autocast():
                losses = mixed.losses(logits)
            self._rehearsal_loop.report(mixed, losses)
            self._loss_sums.add_rehearsed(*losses.total())
            # A pass whose outputs are in no loss would leave other processes waiting for its gradients.
            loss = mixed.weigh(loss, losses, share) + 0.0 * logits[:, :1, 0].float().sum()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """The Trainer's, with figures of rehearsal in the lines of training, so that its reporters show them too.

        They are what this process has trained on since training began here (`RehearsalLoop.metrics`); `target_loss` and
        `rehearsed_loss`, nats per prediction of all processes since the line before; and now and then the service's
        estimates (`RehearsalLoop.estimates`). Of rows that could not be measured, or whose reports had no effect, the
        number is there if there are any.
        """
        if self._rehearsal_loop is not None and not any(name.startswith(_EVAL) for name in logs):
            found = self._rehearsal_loop.metrics()
            logs.update({name: value for name, value in found.items() if value or name in _ALWAYS_LOGGED})
            if "loss" in logs:  # which all processes log together
                logs.update(self._loss_sums.take(self._total, self.args.device))
                logs.update(self._rehearsal_loop.estimates(self.state.global_step - 1))
        super().log(logs, *args, **options)

    def _total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Tensor = self.accelerator.reduce(values, "sum")
        return total

    def _share_of_a_prediction(self, num_items: Any, mixed: Added) -> Tensor | float:
        """The factor that the Trainer's loss gives the nats of a prediction; without a count its loss is a mean."""
        if num_items is None:
            return 1.0 / mixed.num_predictions.clamp(min=1)
        averages = self.args.average_tokens_across_devices and self.model_accepts_loss_kwargs
        share: Tensor | float = (self.accelerator.num_processes if averages else 1) / num_items
        return share

    def _open_rehearsal(self) -> None:
        """Begin at the Trainer's global step, also where it tries again with smaller batches."""
        self._close_rehearsal()
        if self._own_run is not None:
            self.rehearsal = replace(self.rehearsal, client=self._own_run.client())
            if self.accelerator.process_index == 0:
                self._own_run.ensure(
                    self.rehearsal.client,
                    _global_batch_size(self),
                    self.args.seed,
                    self.state.max_steps,
                    str(self.args.lr_scheduler_type.value),
                )
            self.accelerator.wait_for_everyone()
        if self.accelerator.process_index == 0:
            warn_if_untested(*_LIBRARIES, *(name for name in ("trl", "peft") if name in sys.modules))
        loop = self.rehearsal.open(
            self.accelerator.process_index,
            self.accelerator.num_processes,
            first_step=self.state.global_step,
            num_steps=self.state.max_steps,
            global_batch_size=_global_batch_size(self),
            model=self.model,
            tokenizer=_tokenizer_of(self.processing_class),
        )
        self._rehearsal_loop, self._loss_sums = loop, LossSums()
        if self.accelerator.process_index == 0:
            loop.rewind()
        # Nobody may ask for a batch before the run is rewound.
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, *args: Any, **options: Any) -> Any:
        """Save a checkpoint as the Trainer does, once the reports of all processes are durable."""
        self._flush_rehearsal()
        self.accelerator.wait_for_everyone()
        return super()._save_checkpoint(*args, **options)

    def _flush_rehearsal(self) -> None:
        if self._rehearsal_loop is not None:
            self._rehearsal_loop.flush()

    def _finish_rehearsal(self) -> None:
        if self._rehearsal_loop is not None:
            self._rehearsal_loop.finish()

    def _close_rehearsal(self) -> None:
        if self._rehearsal_loop is not None:
            self._rehearsal_loop.close()
            self._rehearsal_loop = None
        if self._own_run is not None:
            self.rehearsal.client.close()


class RehearsalTrainer(RehearsalMixin, Trainer):  # type: ignore[misc]
    """`transformers.Trainer` that rehearses; see RehearsalMixin."""


class _Hooks(TrainerCallback):  # type: ignore[misc]
    """Tells a trainer where it stands in its training."""

    def __init__(self, trainer: RehearsalMixin) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer._open_rehearsal()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer._finish_rehearsal()


def _asked(return_outputs: bool) -> dict[str, Any]:
    """What asks a Trainer for outputs too; trl 2 does not know the parameter, so only those who need them name it."""
    return {"return_outputs": True} if return_outputs else {}


def _tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer of a Trainer, also within a processor; None where it is not a fast tokenizer."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    return tokenizer if getattr(tokenizer, "is_fast", False) else None


def _global_batch_size(trainer: Any) -> int:
    """The rows of an optimizer step: what the Trainer calls its total, unless processes share each batch."""
    total: int = trainer.get_total_train_batch_size(trainer.args)
    return total // trainer.accelerator.num_processes if trainer.accelerator.split_batches else total


def _logits(outputs: Any) -> Tensor:
    logits = outputs.get("logits") if isinstance(outputs, dict) else None
    if logits is None:
        raise InvalidTraining(
            "the model's output has no logits to measure rehearsed rows by; turn off what leaves them out, such as "
            "use_liger_kernel or a loss in chunks"
        )
    found: Tensor = logits
    return found
