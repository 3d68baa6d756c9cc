"""Rehearsal in a loop of Hugging Face's accelerate.

with AcceleratedRehearsal(accelerator, rehearsal, num_steps=num_steps, model=model) as rehearsing:
    for inputs in loader:
        with accelerator.accumulate(model):
            batch = rehearsing.mix(inputs)
            output = model(**batch.inputs)
            accelerator.backward(rehearsing.loss(batch, output))
            optimizer.step()
            optimizer.zero_grad()
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from torch import Tensor

from replay_trainer.batches.added import Added
from replay_trainer.beginning import OnExisting
from replay_trainer.frameworks import warn_if_untested
from replay_trainer.micro_batches import MicroBatches
from replay_trainer.plain import Rehearsal
from replay_trainer.rehearsal_loop import RehearsalLoop


class AcceleratedRehearsal:
    """The rehearsal of one process of an Accelerator.

    `accelerator.save_state` and `load_state` hold it too: reports are durable before a checkpoint is written, and
    loading rewinds the run. Leaving the block without an error waits for all reports, and says that the job has ended.

    Args:
        accelerator: of the loop; its processes share each optimizer step, and call everything here alike.
        rehearsal: what to rehearse. Its run has injection_mode `add`, and as global_batch_size the rows of an optimizer
            step over all processes and accumulated micro-batches.
        num_steps: optimizer steps of the job; None if nobody knows.
        model, tokenizer: are checked against the corpus, if they are given.
        on_existing: what to do where the run is ahead of a loop that loads no state: see `Rehearsal.open`.

    Raises:
        InvalidTraining, CorpusMismatch, ServiceError: as `Rehearsal.open` does.
    """

    def __init__(
        self,
        accelerator: Any,
        rehearsal: Rehearsal,
        *,
        num_steps: int | None = None,
        model: Any = None,
        tokenizer: Any = None,
        on_existing: OnExisting = "refuse",
    ) -> None:
        self._accelerator = accelerator
        if accelerator.process_index == 0:
            warn_if_untested("torch", "accelerate")
        self.loop: RehearsalLoop = rehearsal.open(
            accelerator.process_index,
            accelerator.num_processes,
            num_steps=num_steps,
            on_existing=on_existing,
            model=None if model is None else accelerator.unwrap_model(model),
            tokenizer=tokenizer,
        )
        self._parts = MicroBatches(
            self.loop,
            num_parts=lambda: int(accelerator.gradient_accumulation_steps),
            is_last=lambda: bool(accelerator.sync_gradients),
            total=lambda values: accelerator.reduce(values, "sum"),
        )
        accelerator.register_for_checkpointing(self)

    def mix(self, inputs: Mapping[str, Any], *, apart: bool = False) -> Added:
        """A loader's batch with rehearsed rows at its end, or with `apart` beside it; see `MicroBatches.mix`.

        Call it within `accelerator.accumulate`.

        Raises:
            InvalidTraining: as RehearsalLoop.mix does.
        """
        return self._parts.mix(inputs, apart=apart)

    def loss(self, batch: Added, output: Any, rehearsed: Any = None) -> Tensor:
        """The loss for `accelerator.backward`; the losses of rehearsed rows are reported.

        Args:
            batch: as `mix` gave it.
            output: the model's, with `loss`, the mean over the predictions of the batch, and `logits`.
            rehearsed: the model's output for `batch.rehearsed_inputs`, where that is a pass of its own.

        Raises:
            InvalidTraining: when that pass is missing.
        """
        with self._accelerator.autocast():
            return self._parts.loss(batch, output.loss, output.logits, None if rehearsed is None else rehearsed.logits)

    def figures(self) -> dict[str, float]:
        """Figures for `accelerator.log`, after an optimizer step; see `MicroBatches.figures`."""
        return self._parts.figures(self._accelerator.device)

    @property
    def next_step(self) -> int:
        """The optimizer step that comes next, counted from 0; after `load_state`, that of the checkpoint."""
        return self.loop.stream.next_step

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint; waits until the reports of all steps before it are durable.

        Raises:
            InvalidTraining: within an optimizer step.
        """
        self._parts.check_between_steps()
        return self.loop.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken: the run is rewound to it, and no process goes on before it is."""
        self.loop.load_state_dict(state)
        self._parts.begin_anew()
        if self._accelerator.process_index == 0:
            self.loop.rewind()
        self._accelerator.wait_for_everyone()
        self.loop.beginning = None

    def __enter__(self) -> "AcceleratedRehearsal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.__exit__(kind, error, trace)
