"""Batches put together: the plans of a window, the slice of one rank, and the rows of the corpus that it names."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from starlette.concurrency import run_in_threadpool

from replay_service.corpus.reading.reader import Corpus, CorpusStore
from replay_service.errors import AnswerTooLarge, InvalidRequest, StepOutOfRange
from replay_service.gateway.models import MAX_INT64, BatchRequest
from replay_service.gateway.planning import Planner
from replay_service.ledger.plan_windows import Window
from replay_service.ledger.sampled_corpus import check_fingerprint, must_be_here
from replay_service.sampling.events import Planned, stacked
from replay_service.sampling.injection import rank_positions
from replay_service.wire.batches import LIKELIEST, Batch, BatchHeader, StepHeader
from replay_service.wire.samples import SampleColumns

MOST_BYTES_AT_ONCE: Final = 4 << 20
"""Larger batches are read in a thread. To wake a thread up costs as much as to gather a megabyte, and the socket takes
so many bytes in one go too, so nobody waits for either much longer than a millisecond."""

MOST_JSON_BYTES: Final = 4 << 20
"""Of the samples of an answer in JSON, as they lie in the corpus; as text they take many times that."""


@dataclass(frozen=True, slots=True)
class BatchSource:
    """Makes batches from what a planner plans and a store of corpora holds.

    Attributes:
        max_steps_per_request: the most steps of one batch.
        max_response_bytes: the most bytes that the samples of one batch may have.
    """

    planner: Planner
    corpora: CorpusStore
    max_steps_per_request: int
    max_response_bytes: int

    async def batch(self, run: str, asked: BatchRequest, as_json: bool = False) -> tuple[Batch, bool]:
        """The samples of one rank in a window of steps, and whether steps were planned for it.

        Raises:
            InvalidRequest: when there can be no such batch.
            AnswerTooLarge: when it would have too many bytes; the plans that were made for it stay.
            CorpusReplaced: when another corpus has the name of the one that the run began on.
            CorpusUnavailable: when none has, here.
            ReplayError: what the planner refuses.
        """
        _check(asked, self.max_steps_per_request)
        window = await self.planner.window(run, asked.step, asked.num_steps)
        mine = RankRows.of(window, asked)
        corpus = await self._corpus(window)
        if asked.topk and not corpus.manifest.topk:
            raise InvalidRequest(
                f"corpus {corpus.manifest.name!r} does not store the base model's likeliest tokens; ingest it with "
                "`--store-topk 8`, or ask without topk"
            )
        _check_size(mine, corpus.record_bytes, MOST_JSON_BYTES if as_json else self.max_response_bytes)
        samples = await self._samples(window, corpus, mine)
        if corpus.is_remote:
            await self._read_ahead(corpus, window, asked)
        return _batch(window, asked, corpus, mine, samples), window.is_new

    async def _corpus(self, window: Window) -> Corpus:
        """The corpus that a window's run began on, as it is at hand if it is."""
        with must_be_here(window.run, window.corpus):
            if self.corpora.is_remote:
                corpus = await run_in_threadpool(self.corpora.at, window.corpus, window.generation)
            else:
                corpus = self.corpora.at(window.corpus, window.generation)
        if not _is_of(window, corpus):
            return await self._corpus_now(window)
        corpus.need(window.generation)  # the process that plans may have seen a later one
        return corpus

    async def _corpus_now(self, window: Window) -> Corpus:
        """The corpus that a window's run began on, looked for again."""
        with must_be_here(window.run, window.corpus):
            corpus = await run_in_threadpool(self.corpora.get, window.corpus)
        check_fingerprint(window.corpus, window.corpus_fingerprint, corpus.fingerprint, f"run {window.run!r}")
        corpus.need(window.generation)
        return corpus

    async def _samples(self, window: Window, corpus: Corpus, mine: "RankRows") -> SampleColumns:
        """The samples of a rank.

        Those that cannot be read are damaged, unless another corpus stands where theirs was.
        """
        samples = await _read(corpus, mine)
        if not samples.length.all():
            now = await self._corpus_now(window)
            if now is not corpus:
                return await _read(now, mine)
        return samples

    async def _read_ahead(self, corpus: Corpus, window: Window, asked: BatchRequest) -> None:
        """Begin to fetch the rank's samples of the next window, as far as another rank has had it planned."""
        plans = await self.planner.planned(window.run, asked.step + asked.num_steps, asked.num_steps)
        if plans:
            sample_ids = np.concatenate([plan.rows["sample_id"][_slice(plan, asked)] for plan in plans])
            await run_in_threadpool(partial(corpus.read_ahead, sample_ids))


@dataclass(frozen=True, slots=True)
class RankRows:
    """The rows of a window of steps that fall to one rank.

    Attributes:
        rows: PLANNED_ROW [n], in step order.
        num_rows: how many there are of each step.
    """

    rows: np.ndarray
    num_rows: Sequence[int]

    @classmethod
    def of(cls, window: Window, asked: BatchRequest) -> "RankRows":
        parts = [plan.rows[_slice(plan, asked)] for plan in window.plans]
        return cls(stacked(parts), [len(each) for each in parts])


def _is_of(window: Window, corpus: Corpus) -> bool:
    """Whether a window's run began on this corpus."""
    return window.corpus_fingerprint in (None, corpus.fingerprint)


async def _read(corpus: Corpus, mine: RankRows) -> SampleColumns:
    """The samples, read in a thread unless that is a matter of microseconds."""
    sample_ids = mine.rows["sample_id"]
    is_small = len(sample_ids) * corpus.record_bytes <= MOST_BYTES_AT_ONCE
    at_hand = corpus.columns_at_hand(sample_ids) if is_small else None
    return await run_in_threadpool(corpus.columns, sample_ids) if at_hand is None else at_hand


def _check(asked: BatchRequest, most_steps: int) -> None:
    if asked.rank >= asked.world_size:
        raise InvalidRequest(
            f"rank {asked.rank} is not in a job of world_size {asked.world_size}; ranks are 0 to {asked.world_size - 1}"
        )
    if asked.num_steps > most_steps:
        raise InvalidRequest(
            f"num_steps {asked.num_steps} is more than one request may ask for; ask for at most {most_steps}"
        )
    if asked.step > MAX_INT64 - asked.num_steps:
        raise StepOutOfRange(f"step {asked.step} is beyond the last step there can be")


def _check_size(mine: RankRows, record_bytes: int, most_bytes: int) -> None:
    most_rows = most_bytes // record_bytes
    if len(mine.rows) <= most_rows:
        return
    fitting = int(np.searchsorted(np.cumsum(mine.num_rows), most_rows, side="right"))
    raise AnswerTooLarge(
        f"these {len(mine.num_rows)} steps hold {len(mine.rows)} samples of {record_bytes} bytes for the rank, and one "
        f"answer may have {most_bytes} bytes; "
        + (
            f"ask for at most {fitting} steps from there"
            if fitting
            else "not even the first step fits: see the setting max_response_bytes, or train on more ranks"
        ),
        max_steps=fitting,
    )


def _batch(window: Window, asked: BatchRequest, corpus: Corpus, mine: RankRows, samples: SampleColumns) -> Batch:
    """The batch of a rank's rows and the samples that they name."""
    columns = {name: each for name, each in samples.columns().items() if asked.topk or name not in LIKELIEST}
    return Batch.of(
        columns,
        header=BatchHeader(
            run=window.run,
            attempt=window.attempt,
            corpus=window.corpus,
            generation=window.generation,
            injection_ratio=window.injection_ratio,
            rank=asked.rank,
            world_size=asked.world_size,
            seq_len=corpus.manifest.seq_len,
            separator_id=corpus.manifest.separator_id,
            steps=[_step_header(plan) for plan in window.plans],
            kind=corpus.manifest.kind,
        ),
        step=np.repeat([plan.step for plan in window.plans], mine.num_rows),
        sample_id=mine.rows["sample_id"],
        probability=mine.rows["probability"],
        times_drawn=mine.rows["times_drawn"],
    )


def _step_header(plan: Planned) -> StepHeader:
    return StepHeader(plan.step, len(plan.rows), plan.rehearsed_before, plan.policy_version)


def _slice(plan: Planned, asked: BatchRequest) -> slice:
    positions = rank_positions(len(plan.rows), plan.step, asked.rank, asked.world_size)
    return slice(positions.start, positions.stop, positions.step)
