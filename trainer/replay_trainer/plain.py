"""Rehearsal in a loop of your own, of plain PyTorch: rehearsed rows are added to the batches that a loader gives.

    stage     takes                        does                                 gives
    mix       a loader's batch             adds the step's rehearsed rows       MixedInputs
    losses    logits                       measures the rehearsed rows          Losses
    report    MixedInputs, Losses          sends losses and flips               reports, in the background

A loader has dealt its rows out before anybody can tell how many the step rehearses, so rows are added and none is put
aside: the run's injection_mode must be `add`. What is added follows from the corpus: rows of tokens, or samples with a
label (`replay_trainer.batches.samples`).

Shapes: B rows, the last R of them rehearsed, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Literal

from torch import nn

from replay_service.classification.model import fingerprint as model_fingerprint
from replay_service.language.tokenizer import is_known_as
from replay_service.wire.batches import Batch
from replay_trainer.batches.added import Added, Losses
from replay_trainer.batches.distilled import DISTILLED_SHARE, Distillation, RehearsalLoss
from replay_trainer.batches.padding_free import check_isolation, is_padding_free
from replay_trainer.batches.rows import add_rows
from replay_trainer.batches.samples import Prepare, add_samples, try_tensors
from replay_trainer.beginning import Beginning, OnExisting, warn_if_undecided
from replay_trainer.client import CorpusInfo, ReplayClient
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.methods.teacher import Teacher
from replay_trainer.ranks import sum_over_ranks
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.reporting import LossReporter
from replay_trainer.session import RehearsalSession
from replay_trainer.trained import StepSize, Tally, Trained
from replay_trainer.windows import Auto


def add(
    inputs: Mapping[str, Any],
    rehearsed: Batch,
    rehearsal_weight: float = 1.0,
    prepare: Prepare | None = None,
    distillation: Distillation | None = None,
) -> Added:
    """A loader's batch with rehearsed rows at its end: `add_rows`, or `add_samples` from a corpus to classify.

    Raises:
        InvalidTraining: as they do.
    """
    if rehearsed.header.kind == "classification":
        return add_samples(inputs, rehearsed, rehearsal_weight, prepare)
    return add_rows(inputs, rehearsed, rehearsal_weight, distillation)


@dataclass(slots=True)
class RehearsalLoop(RehearsalSession):
    """The rehearsal of one rank, step by step; `Rehearsal.open` makes one.

    Leaving its block without an error waits for all reports, and says that the job has ended.

    Raises, from every method that talks to the service, what RehearsalStream and LossReporter do.
    """

    rehearsal_weight: float = 1.0
    prepare: Prepare | None = None
    distillation: Distillation | None = None
    beginning: Beginning | None = None
    tally: Tally = field(default_factory=Tally)
    _current: Batch | None = field(default=None, init=False, repr=False)
    _keeps_apart: bool = field(default=False, init=False, repr=False)
    _has_tried: bool = field(default=False, init=False, repr=False)

    def __enter__(self) -> "RehearsalLoop":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def check_model(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """Find whether a model, as it is called in training, keeps the samples of flat batches like this one apart.

        Raises:
            InvalidTraining: when tokens of this model see the samples before theirs.
        """
        if is_padding_free(inputs) and not self._keeps_apart:
            check_isolation(model, inputs)
            self._keeps_apart = True

    def mix(self, step: int, inputs: Mapping[str, Any], *, part: int = 0, num_parts: int = 1) -> Added:
        """The batch of an optimizer step with what this rank rehearses in it; see `add_rows` and `add_samples`.

        Steps come in order. The last one may be asked for again, until its losses are reported.

        Args:
            step: of the optimizer, counted from 0.
            inputs: the loader's batch: a mapping with `labels`.
            part: which micro-batch of the step it is, where the gradient is accumulated over several.
            num_parts: how many micro-batches the step has. Each gets its share of the step's rehearsed rows; together
                they get each row once.

        Raises:
            InvalidTraining: when the step is another, was reported already, has not as many rows as the run's
                global_batch_size says, or the batch cannot be mixed.
        """
        if not isinstance(inputs, Mapping):
            raise InvalidTraining(
                f"the batch is a {type(inputs).__name__}, not a mapping of names to tensors; give mix what the model "
                'is called with, and labels, such as {"input_ids": ids, "labels": labels}'
            )
        if is_padding_free(inputs) and not self._keeps_apart:
            raise InvalidTraining(
                "the batches are flat, and not every model keeps their samples apart; call check_model before the first"
            )
        rehearsed = self._rows_of(step, part, num_parts)
        first, end = (len(rehearsed) * number // num_parts for number in (part, part + 1))
        mixed = add(inputs, rehearsed.rows(slice(first, end)), self.rehearsal_weight, self.prepare, self.distillation)
        mixed = replace(mixed, part=part)
        if not (self._has_tried or mixed.num_rehearsed):
            try_tensors(inputs, rehearsed, self.prepare)
        self._has_tried = True
        self.tally.add(mixed, inputs)
        return mixed

    def spread(self, step: int, parts: Sequence[Mapping[str, Any]]) -> list[Added]:
        """Likewise for all micro-batches of a step at once, one at least.

        Raises:
            InvalidTraining: as `mix` does.
        """
        return [self.mix(step, each, part=number, num_parts=len(parts)) for number, each in enumerate(parts)]

    def report(self, batch: Added, losses: Losses) -> None:
        """Send the losses of a batch's rehearsed rows, without waiting; call it before the optimizer's step.

        Raises:
            InvalidTraining: when those of this part of the step were reported already.
        """
        self.tally.report(batch)
        if batch.num_rehearsed:
            self.reporter.send(batch.loss_rows(losses, self.stream.rank))

    @property
    def trained(self) -> Trained:
        """What this rank has trained on so far, counted from its batches.

        The service is told now and then, and by `flush`.
        """
        return self.tally.trained

    def metrics(self) -> dict[str, float]:
        """Figures of this rank to log: what it has trained on, and the reported rows that had no effect."""
        counts = {"num_unmeasured_rows": self.reporter.num_unmeasured, **self.without_effect()}
        return {**self.trained.metrics(), **counts}

    def flush(self) -> None:
        """Wait until all reports are durable: losses, and the counts of what was trained on."""
        self._report_trained()
        RehearsalSession.flush(self)

    def finish(self) -> None:
        """Wait until all reports are durable, and say that the job has ended; leaving the loop's block does so.

        A loop that was opened and mixed nothing has not trained, so it says nothing.
        """
        self.flush()
        if self._current is not None:
            RehearsalSession.finish(self)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint; waits until the reports of all steps before it are durable."""
        return {**RehearsalSession.state_dict(self), "trained": asdict(self.trained)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, with the samples that came then.

        `rewind` must follow, on one rank, unless the loop was opened with on_existing "rewind".
        """
        RehearsalSession.load_state_dict(self, state)
        trained = Trained(**state.get("trained", {}))
        self.tally.go_on_from(trained, self.stream.next_step)
        self.count_from(trained.counts)
        self._current = None

    def _report_trained(self) -> None:
        next_step, trained = self.tally.finished()
        attempt = 0 if self._current is None else self._current.header.attempt
        self.trained_reporter.send(next_step, trained.counts, attempt)

    def _rows_of(self, step: int, part: int, num_parts: int) -> Batch:
        """The rehearsed rows of this rank in a step; all checks come before they are asked for."""
        if self._current is not None and step == self.stream.next_step - 1:
            self.tally.begin(step, part, num_parts)
            return self._current
        if step != self.stream.next_step:
            raise InvalidTraining(
                f"step {step} was asked for, but the next one is {self.stream.next_step}; steps come in order, and "
                "load_state_dict goes back to that of a checkpoint"
            )
        if self.trained_reporter.is_due:
            self._report_trained()
        self.tally.begin(step, part, num_parts)
        if self.beginning is not None:
            self.beginning.settle(self.stream)
            self.beginning = None
        self._current = next(self.stream, None)
        if self._current is None:
            raise InvalidTraining(
                f"step {step} was asked for, but the loop was opened for {step} steps; open it for more"
            )
        return self._current


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The rehearsal of a loop, before its rank is known.

    Attributes:
        client: of the service.
        run: its name; `client.ensure_run` made it, with injection_mode `add`. Its global_batch_size is how many
            fine-tuning rows an optimizer step takes, over all ranks and accumulated parts.
        rehearsal_weight: what a rehearsed prediction weighs beside a fine-tuning one.
        rehearsal_loss: what a rehearsed prediction learns: `cross_entropy`, towards the token that came; `distill`,
            towards the base model's distribution; `mixed`, half of each. With the last two the loss must go through
            `Added.weigh`.
        teacher: whom distilled rows learn from: `Teacher.of(model)`, made before the model is restored from a
            checkpoint; or `stored`, from what the corpus keeps of the base model.
        window_steps: see RehearsalStream.
        tokenizer: if it is given, whether it is the corpus's is checked.
        base_model: if it is given, whether it has scored the corpus, which is one to classify, is checked. It is the
            model as it is before fine-tuning, also where a job goes on from a checkpoint.
        prepare: makes of a corpus's tensors, [R, ...] as they are stored, what the loader gives.
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
        model: Any = None,
        tokenizer: Any = None,
    ) -> RehearsalLoop:
        """The loop of one rank. All ranks open theirs before any mixes; with torch.distributed they wait for that.

        Args:
            rank: in [0, world_size).
            world_size: processes that have batches of their own.
            first_step: where it begins.
            num_steps: where it ends; None if nobody knows. Steps beyond are not asked for ahead.
            global_batch_size: fine-tuning rows of an optimizer step, if the loop knows; must be the run's. Then steps
                may have fewer rows, which are counted (`RehearsalLoop.trained`). Else only the last step of an epoch
                may, and other batches are refused.
            on_existing: what to do at the first `mix` where the run is ahead of the loop, as it is when a script is
                run again: `refuse`, or `rewind` it to the loop's step, by which later plans and reports are forgotten.
            model: the model to tune, if the loop knows; must know the corpus's tokens.
            tokenizer: of the loop, if it knows; must be that of a corpus that says which it was made with.

        Raises:
            InvalidTraining: when the run's injection_mode or global_batch_size is not that of the loop, or rehearsed
                rows are to be distilled and there is no teacher.
            CorpusMismatch: when the tokenizer, the base model, or the model's vocabulary or classes do not fit the
                corpus, or it has nothing to distil.
            ServiceError: as ReplayClient does.
        """
        info = self.client.run(self.run)
        self._check(info, global_batch_size, model, tokenizer)
        size = StepSize(self.run, info["config"]["global_batch_size"], world_size, global_batch_size is not None)
        warn_if_undecided(info, num_steps)
        beginning = Beginning.of_run(info, on_existing, world_size)
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
        return RehearsalLoop(stream, reporter, self.rehearsal_weight, self.prepare, distillation, beginning, tally)

    def _check(self, info: Mapping[str, Any], global_batch_size: int | None, model: Any, tokenizer: Any) -> None:
        config = info["config"]
        if config["injection_mode"] != "add":
            raise InvalidTraining(
                f"run {self.run!r} was made with injection_mode {config['injection_mode']!r}, but rehearsed rows are "
                "added to a loader's batches; make a run with injection_mode 'add'"
            )
        if global_batch_size not in (None, config["global_batch_size"]):
            raise InvalidTraining(
                f"run {self.run!r} was made with global_batch_size {config['global_batch_size']}, but a step of this "
                f"loop takes {global_batch_size} fine-tuning rows; make a run with that global_batch_size"
            )
        is_distilled = self._distillation() is not None
        if is_distilled or any(each is not None for each in (self.tokenizer, self.base_model, model, tokenizer)):
            corpus = self.client.corpus(info["corpus"])
            if is_distilled:
                self._check_distilled(corpus)
            _check_tokenizer(self.tokenizer, corpus)
            if corpus.tokenizer_fingerprint:
                _check_tokenizer(tokenizer, corpus)
            _check_vocabulary(model, corpus)
            _check_classes(model, corpus)
            self._check_base_model(corpus)

    def _distillation(self) -> Distillation | None:
        """How rehearsed rows learn from the base model, if they do."""
        if self.rehearsal_loss == "cross_entropy":
            return None
        if self.teacher is None:
            raise InvalidTraining(
                f"rehearsal_loss is {self.rehearsal_loss!r} and there is no teacher; give teacher=Teacher.of(model), "
                "made before the model is restored from a checkpoint, or teacher='stored'"
            )
        return Distillation(DISTILLED_SHARE[self.rehearsal_loss], None if self.teacher == "stored" else self.teacher)

    def _check_distilled(self, corpus: CorpusInfo) -> None:
        if corpus.kind != "language":
            raise CorpusMismatch(
                f"corpus {corpus.corpus!r} holds samples to classify, and distilled rehearsal is for language; leave "
                "rehearsal_loss at cross_entropy"
            )
        if self.teacher == "stored" and not corpus.topk:
            raise CorpusMismatch(
                f"corpus {corpus.corpus!r} does not store the base model's likeliest tokens; give "
                "teacher=Teacher.of(model), or ingest it with --store-topk 8"
            )

    def _check_base_model(self, corpus: CorpusInfo) -> None:
        if self.base_model is None:
            return
        if corpus.classes is None:
            raise CorpusMismatch(
                f"corpus {corpus.corpus!r} is of language, which is told by its tokenizer; leave base_model out"
            )
        if model_fingerprint(self.base_model) != corpus.classes["model_fingerprint"]:
            raise CorpusMismatch(
                f"the base model has other weights than the one that scored corpus {corpus.corpus!r}; give the model "
                "as it is before fine-tuning, or ingest the samples with this one"
            )


def _check_tokenizer(tokenizer: Any, corpus: CorpusInfo) -> None:
    if tokenizer is not None and not is_known_as(tokenizer, corpus.tokenizer_fingerprint):
        raise CorpusMismatch(
            f"the tokenizer is not the one that corpus {corpus.corpus!r} was made with; ingest the pretraining "
            "shards with this model, or tune the model that the corpus was made for"
        )


def _check_vocabulary(model: Any, corpus: CorpusInfo) -> None:
    """A model whose inputs are no tokens has nothing to check, nor has a corpus that names no tokenizer."""
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    num_known = getattr(embedding, "num_embeddings", None)
    is_known = corpus.kind == "language" or bool(corpus.tokenizer_fingerprint)
    if num_known is not None and is_known and corpus.vocab_size > num_known:
        raise CorpusMismatch(
            f"corpus {corpus.corpus!r} has token ids up to {corpus.vocab_size - 1}, but the model knows only "
            f"{num_known} tokens; tune the model that the corpus was made for, or ingest the pretraining shards "
            "with this model"
        )


def _check_classes(model: Any, corpus: CorpusInfo) -> None:
    """A model that does not say how many classes it has is checked by its first logits of rehearsed samples."""
    num_known = getattr(getattr(model, "config", None), "num_labels", None)
    if corpus.classes is not None and num_known is not None and num_known < corpus.classes["num_classes"]:
        raise CorpusMismatch(
            f"samples of corpus {corpus.corpus!r} are of {corpus.classes['num_classes']} classes, but the model has "
            f"{num_known}; keep the classes of the base model, and put new ones after them"
        )
