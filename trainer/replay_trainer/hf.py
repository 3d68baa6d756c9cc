"""Rehearsal in `transformers.Trainer`, and in the trainers that are made of it, such as trl's SFTTrainer.

    trainer = RehearsalTrainer(rehearsal=Rehearsal(client, "my-run"), model=model, args=args, train_dataset=rows)
    trainer.train()

    class RehearsalSFTTrainer(RehearsalMixin, SFTTrainer): ...

Rehearsed rows are added, after the collator, to the micro-batches of each optimizer step, spread evenly; none of the
dataset's rows is left out. So gradient accumulation does not change what is rehearsed, nor does a short step at the end
of an epoch. The loss is the trainer's own, over all rows, and its mean counts rehearsed predictions too.

What is added follows from the corpus: rows of tokens, or samples with a label beside `pixel_values` or `input_ids`.
Rehearsed rows are measured by the logits of the training forward pass. A trainer whose `compute_loss` builds none, as
trl's SFTTrainer since it fuses the head with the loss, makes a second pass, without gradients, to give them. So there a
step that rehearses takes longer, `rehearsal_weight` must stay 1, and rehearsed rows learn by cross-entropy.

With `Rehearsal(..., rehearsal_loss="distill")` the teacher is the model as the Trainer is given it: with peft its
adapters are switched off, otherwise it is copied.

Batches may be flat, as DataCollatorWithFlattening makes them: rehearsed rows join the one row, without padding. Whether
the model keeps samples apart is tried before the first one (`replay_trainer.batches.padding_free`).
"""

from dataclasses import replace
from typing import Any, Final

from torch import Tensor
from transformers import Trainer, TrainerCallback

from replay_trainer.batches.added import Added
from replay_trainer.batches.samples import MixedSamples
from replay_trainer.errors import InvalidTraining
from replay_trainer.methods.teacher import Teacher
from replay_trainer.plain import Rehearsal, RehearsalLoop
from replay_trainer.trained import Trained

_MIXED: Final = "mixed_with_rehearsal"
"""Key of a micro-batch under which its rehearsed rows travel from the loader to the loss."""

_CROSS_ENTROPY: Final = (None, "nll", "chunked_nll")
"""The name that trl has for it."""

_OF_PREFERENCES: Final = ("chosen", "rejected", "prompt_", "completion_ids", "KL_")
"""Beginnings of the names of columns."""

_ALWAYS_LOGGED: Final = frozenset(Trained().metrics())

_AnyTrainer: Any = object


class RehearsalMixin(_AnyTrainer):  # type: ignore[misc]
    """Goes before a Trainer in the bases of a class.

    It resumes as the Trainer does: training that begins at a global step rewinds the run to it. Reported losses are
    durable before a checkpoint is written.

    Args:
        rehearsal: what to rehearse. Its run has injection_mode `add`, and as global_batch_size the rows of an
            optimizer step: per_device_train_batch_size * gradient_accumulation_steps * processes; without the
            processes where accelerate splits batches between them (`split_batches`).
        args, options: those of the Trainer.

    Raises, from the constructor:
        InvalidTraining: when the Trainer learns from preferences or rewards, has a loss other than the model's,
            other labels than `labels`, or splits rows between devices.

    Raises, from `train`:
        InvalidTraining: when the run is made for something else, or a batch or the model's output cannot be mixed.
        CorpusMismatch: when the Trainer's tokenizer is not the corpus's, or its model does not know all of its tokens.
        TrainerError: as RehearsalLoop does.
    """

    def __init__(self, *args: Any, rehearsal: Rehearsal, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rehearsal = self._with_teacher(rehearsal)
        self._rehearsal_loop: RehearsalLoop | None = None
        _check_batches(self)
        _check_label_names(self)
        _check_loss(self)
        _check_devices(self)
        self.add_callback(_Hooks(self))

    def _with_teacher(self, rehearsal: Rehearsal) -> Rehearsal:
        """The base model is the model as it is given to the Trainer, which a checkpoint may replace later."""
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
        # Every process has batches of the same kind, so all of them check, or none.
        self._rehearsal_loop.check_model(self.model_wrapped, batches[0])
        mixed = self._rehearsal_loop.spread(self.state.global_step, batches)
        if num_items is not None:
            num_items = self._get_num_items_in_batch([each.inputs for each in mixed], device)
        if not mixed[0].rehearsed.only_step.num_rehearsed:
            return batches, num_items
        # Also where this rank rehearses nothing: all ranks must run the model alike, or they wait for each other.
        return [{**each.inputs, _MIXED: each} for each in mixed], num_items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **options: Any
    ) -> Any:
        """The Trainer's loss of all rows; those of the rehearsed ones are reported."""
        mixed: Added | None = inputs.pop(_MIXED, None)
        if mixed is None or self._rehearsal_loop is None:
            return super().compute_loss(model, inputs, return_outputs, *args, **options)
        loss, outputs = super().compute_loss(model, inputs, True, *args, **options)
        if mixed.num_rehearsed:
            logits = _logits(outputs)
            # Under the arithmetic of the model in training: the base model is not wrapped in it.
            with self.accelerator.autocast():
                losses = mixed.losses(logits)
            self._rehearsal_loop.report(mixed, losses)
            num_items = args[0] if args else options.get("num_items_in_batch")
            if isinstance(mixed, MixedSamples):
                share: Tensor | float | None = mixed.share_in(loss, logits)
            else:
                share = self._share_of_a_prediction(num_items)
            loss = mixed.weigh(loss, losses, share)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """The Trainer's, with what this process has trained on since training began here (`RehearsalLoop.metrics`).

        Of rows that could not be measured, or whose reports had no effect, the number is there if there are any.
        """
        if self._rehearsal_loop is not None:
            found = self._rehearsal_loop.metrics()
            logs.update({name: value for name, value in found.items() if value or name in _ALWAYS_LOGGED})
        super().log(logs, *args, **options)

    def _share_of_a_prediction(self, num_items: Any) -> Tensor | float | None:
        """Factor of the nats of a prediction in the Trainer; None: it takes the mean of the micro-batch."""
        if num_items is None:
            return None
        averages = self.args.average_tokens_across_devices and self.model_accepts_loss_kwargs
        share: Tensor | float = (self.accelerator.num_processes if averages else 1) / num_items
        return share

    def _open_rehearsal(self) -> None:
        """Begin at the Trainer's global step, also where it tries again with smaller batches."""
        self._close_rehearsal()
        loop = self.rehearsal.open(
            self.accelerator.process_index,
            self.accelerator.num_processes,
            first_step=self.state.global_step,
            num_steps=self.state.max_steps,
            global_batch_size=_global_batch_size(self),
            model=self.model,
            tokenizer=_tokenizer_of(self.processing_class),
        )
        self._rehearsal_loop = loop
        if self.accelerator.process_index == 0:
            loop.rewind()
        # Nobody may ask for a batch before the run is rewound.
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, *args: Any, **options: Any) -> Any:
        """Before the Trainer's own; whatever asked for it. No process begins before the reports of all are durable."""
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


def _check_batches(trainer: Any) -> None:
    """The batches must be rows with labels. Trainers of preferences and of policies say that theirs are something else:
    pairs of answers, or prompts to answer."""
    trainer._set_signature_columns_if_needed()
    columns = trainer._signature_columns or []
    found = [each for each in columns if each.startswith(_OF_PREFERENCES)]
    if not found and "prompt" in columns and "messages" not in columns:
        found = ["prompt"]
    if found:
        raise InvalidTraining(
            f"a {type(trainer).__name__} trains on {', '.join(found)}, not on rows with labels, which rehearsed rows "
            "are; rehearse in Trainer or trl's SFTTrainer, or in a loop of your own (replay_trainer.plain)"
        )


def _check_label_names(trainer: Any) -> None:
    names = trainer.args.label_names
    if names is not None and "labels" not in names:
        raise InvalidTraining(
            f"label_names is {names}, but rehearsed rows join a batch's `labels`; have the collator call them labels, "
            "and leave label_names out"
        )


def _check_loss(trainer: Any) -> None:
    what = None
    if trainer.compute_loss_func is not None:
        what = "compute_loss_func"
    elif trainer.args.label_smoothing_factor:
        what = "label_smoothing_factor"
    elif getattr(trainer.args, "loss_type", None) not in _CROSS_ENTROPY:
        what = f"loss_type {trainer.args.loss_type!r}"
    if what is not None:
        raise InvalidTraining(
            f"{what} is set, but rehearsed rows learn by the model's own cross-entropy, beside which it would count "
            "differently; leave it out"
        )


def _tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer of a Trainer, also within a processor; None where it is not a fast tokenizer."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    return tokenizer if getattr(tokenizer, "is_fast", False) else None


def _check_devices(trainer: Any) -> None:
    shared = trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size()
    if shared > 1 or trainer.args.n_gpu > 1:
        raise InvalidTraining(
            "each process must have whole rows of its own, but here devices share them; start one process a device "
            "with torchrun or accelerate, without tensor, context or sequence parallelism"
        )


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
