"""Rehearsal in a loop of your own, of plain PyTorch: rehearsed rows are added to the batches that a loader gives.

    stage     takes                        does                                 gives
    mix       a loader's batch             adds the step's rehearsed rows       MixedInputs
    take      a RehearsalDataset's step    counts it                            MixedInputs
    losses    logits                       measures the rehearsed rows          Losses
    report    MixedInputs, Losses          sends losses and flips               reports, in the background

A loader has chosen its rows before it is known how many rows the step rehearses, so rehearsed rows are added and none
of the loader's is left out: the run's injection_mode is `add`. With `replace` rows come from a ReplaceSampler or a
RehearsalDataset, which leave room (`replay_trainer.sampler`, `replay_trainer.dataset`). The corpus decides the kind of
row that is added: rows of tokens, or samples with a label (`replay_trainer.batches.samples`).

`Rehearsal` says what to rehearse, and opens the RehearsalLoop that takes the steps (`replay_trainer.rehearsal_loop`).

Shapes: B rows, the last R of them rehearsed, T tokens, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from replay_service.sampling.injection import InjectionMode
from replay_trainer.batches.distilled import DISTILLED_SHARE, Distillation, RehearsalLoss
from replay_trainer.batches.samples import Prepare
from replay_trainer.beginning import Beginning, OnExisting, warn_if_undecided
from replay_trainer.client import ReplayClient
from replay_trainer.compatibility import (
    check_base_model,
    check_classes,
    check_distilled,
    check_run,
    check_tokenizer,
    check_vocabulary,
)
from replay_trainer.corpus_info import CorpusInfo
from replay_trainer.errors import InvalidTraining
from replay_trainer.frameworks import warn_if_untested
from replay_trainer.job_claim import JobClaim
from replay_trainer.methods.teacher import Teacher
from replay_trainer.proxy_text import warn_if_proxy
from replay_trainer.ranks import sum_over_ranks
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.rehearsal_loop import RehearsalLoop
from replay_trainer.reporting import LossReporter
from replay_trainer.trained import StepSize, Tally
from replay_trainer.windows import Auto

__all__ = ["Rehearsal", "RehearsalLoop"]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The rehearsal of a loop, before its rank is known.

    Attributes:
        client: of the service.
        run: its name; `client.ensure_run` made it, with injection_mode `add`, or `replay_trainer.new_run`. Its
            global_batch_size is how many fine-tuning rows an optimizer step takes, over all ranks and accumulated
            parts.
        rehearsal_weight: weight of a rehearsed prediction in the loss; that of a fine-tuning one is 1.
        rehearsal_loss: what a rehearsed prediction learns: `cross_entropy`, towards the token that came; `distill`,
            towards the base model's distribution; `mixed`, half of each. With the last two the loss must go through
            `Added.weigh`.
        teacher: the source of the base model's distribution: `Teacher.of(model)`, made before the model is restored
            from a checkpoint; or `stored`, the likeliest tokens that the corpus stores.
        window_steps: see RehearsalStream.
        tokenizer: must be the corpus's, if it is given.
        base_model: must be the model that scored a corpus to classify, if it is given. It is the model as it is before
            fine-tuning, also where a job goes on from a checkpoint.
        prepare: turns a corpus's tensors, [R, ...] as they are stored, into tensors as the loader gives them.
    """

    client: ReplayClient
    run: str
    rehearsal_weight: float = 1.0
    rehearsal_loss: RehearsalLoss = "cross_entropy"
    teacher: Teacher | Literal["stored"] | None = None
    window_steps: int | Auto = "auto"
    tokenizer: Any = None
    base_model: nn.Module | None = None
    prepare: Prepare | None = None

    def open(
        self,
        rank: int = 0,
        world_size: int = 1,
        *,
        first_step: int = 0,
        num_steps: int | None = None,
        global_batch_size: int | None = None,
        on_existing: OnExisting = "refuse",
        injection_mode: InjectionMode = "add",
        model: Any = None,
        tokenizer: Any = None,
    ) -> RehearsalLoop:
        """The loop of one rank. All ranks open theirs before any mixes; with torch.distributed they wait for that.

        Args:
            rank: in [0, world_size).
            world_size: processes that have batches of their own.
            first_step: the step that the loop begins at.
            num_steps: the step that the loop ends before; None if it is not known. Later steps are not prefetched.
            global_batch_size: fine-tuning rows of an optimizer step, if the loop knows; must be the run's. With it,
                any step may have fewer rows, which are counted (`RehearsalLoop.trained`). Without it, only the last
                step of an epoch may; other smaller batches are refused.
            on_existing: what to do at the first `mix` where the run is ahead of the loop, as it is when a script is
                run again: `refuse`, or `rewind` it to the loop's step, by which later plans and reports are forgotten.
            injection_mode: of the loop, must be the run's: `replace` where its batches leave out as many rows as are
                rehearsed, as those of `replay_trainer.sampler` and `replay_trainer.dataset` do.
            model: the model to tune, if the loop knows; must know the corpus's tokens.
            tokenizer: of the loop, if it knows; must be that of a corpus that says which it was made with.

        Raises:
            InvalidTraining: when the run's injection_mode or global_batch_size is not that of the loop, or rehearsed
                rows are to be distilled and there is no teacher.
            CorpusMismatch: when the tokenizer, the base model, or the model's vocabulary or classes do not fit the
                corpus, or it has nothing to distil.
            RunInUse: when another job uses the run (`replay_trainer.job_claim`).
            ServiceError: as ReplayClient does.
        """
        info = self.client.run(self.run)
        corpus = self.client.corpus(info["corpus"])
        self._check(info, corpus, global_batch_size, injection_mode, model, tokenizer)
        size = StepSize(
            self.run,
            info["config"]["global_batch_size"],
            world_size,
            may_be_short=global_batch_size is not None,
            replaces=injection_mode == "replace",
        )
        warn_if_undecided(info, num_steps)
        if rank == 0:
            warn_if_untested("torch")
            warn_if_proxy(self.tokenizer or tokenizer, self.rehearsal_loss, corpus)
        # The run is claimed before the ranks wait for each other, so that none asks for a batch of another job's run.
        claim = JobClaim.of(self.client, self.run) if rank == 0 else None
        try:
            beginning = Beginning.of_run(info, on_existing, world_size)
        except BaseException:
            if claim is not None:
                claim.close()
            raise
        distillation = self._distillation()
        stream = RehearsalStream(
            self.client,
            self.run,
            rank,
            world_size,
            num_steps,
            self.window_steps,
            topk=distillation is not None and distillation.teacher is None,
            next_step=first_step,
        )
        tally = Tally(size, first_step > 0, partial(sum_over_ranks, world_size=world_size))
        reporter = LossReporter(self.client, self.run)
        return RehearsalLoop(
            stream, reporter, self.rehearsal_weight, self.prepare, distillation, beginning, tally, claim=claim
        )

    def _check(
        self,
        info: Mapping[str, Any],
        corpus: CorpusInfo,
        global_batch_size: int | None,
        injection_mode: InjectionMode,
        model: Any,
        tokenizer: Any,
    ) -> None:
        check_run(info, injection_mode, global_batch_size)
        if self._distillation() is not None:
            check_distilled(corpus, self.teacher)
        check_tokenizer(self.tokenizer, corpus)
        if corpus.tokenizer_fingerprint:
            check_tokenizer(tokenizer, corpus)
        check_vocabulary(model, corpus)
        check_classes(model, corpus)
        check_base_model(self.base_model, corpus)

    def _distillation(self) -> Distillation | None:
        """How rehearsed rows learn from the base model, if they do."""
        if self.rehearsal_loss == "cross_entropy":
            return None
        if self.teacher is None or (isinstance(self.teacher, str) and self.teacher != "stored"):
            found = "no teacher" if self.teacher is None else f"no teacher {self.teacher!r}"
            raise InvalidTraining(
                f"rehearsal_loss is {self.rehearsal_loss!r} and there is {found}; give teacher=Teacher.of(model), "
                "made before the model is restored from a checkpoint, or teacher='stored'"
            )
        return Distillation(DISTILLED_SHARE[self.rehearsal_loss], None if self.teacher == "stored" else self.teacher)
