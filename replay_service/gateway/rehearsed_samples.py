"""What was measured of rehearsed samples, put together: routes and pages show the same."""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, cast

import numpy as np

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import CorpusError, InvalidRequest, UnknownSample
from replay_service.gateway.models import MAX_INT64
from replay_service.gateway.sample_models import SampleHistory, SampleInfo, SamplePage, SampleVisit
from replay_service.gateway.service import ReplayService
from replay_service.gateway.strata_choice import strata_in
from replay_service.ledger.records import RunOverview
from replay_service.ledger.samples import SAMPLE_ORDERS, DamageUnit, SampleOrder, SampleQuery, SampleStatistics
from replay_service.sampling.events import Reported
from replay_service.sampling.partition import stratum_name
from replay_service.wire.losses import GAINS_NOT_TOLD

_ORDERS: Final = ", ".join(SAMPLE_ORDERS)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The samples that somebody asks for; as the query of `GET /v1/runs/{run}/samples`.

    Attributes:
        work_s: for how long to take in reports that no statistics of samples hold yet, seconds.
    """

    order: str = "-damage"
    stratum: int | None = None
    domain: str | None = None
    limit: int = 100
    cursor: str | None = None
    text: bool = False
    work_s: float = math.inf


@dataclass(frozen=True, slots=True)
class _Texts:
    """Texts of samples, None of those that cannot be read; or why there is none."""

    texts: Sequence[str | None]
    problem: str | None = None


def page_of(service: ReplayService, run: str, wanted: Wanted) -> SamplePage:
    """A page of a run's rehearsed samples.

    Raises:
        InvalidRequest: when the order, the stratum, the domain or the cursor makes no sense.
        UnknownRun, CorpusError: when the run, or its corpus, is not there.
    """
    overview = service.journal.overview(run)
    corpus = service.corpus_of(overview.record)
    name = wanted.order.removeprefix("-")
    if name not in SAMPLE_ORDERS:
        raise InvalidRequest(f"order must be one of {_ORDERS}, or one of them with a minus, not {wanted.order!r}")
    query = SampleQuery(
        order=cast(SampleOrder, name),
        descending=wanted.order.startswith("-"),
        limit=wanted.limit,
        strata=strata_in(corpus.partition, wanted.stratum, wanted.domain),
        after=None if wanted.cursor is None else _place(wanted.cursor),
        unit=_unit(overview),
    )
    found = service.journal.samples(run, query, corpus.partition, wanted.work_s)
    texts = _texts_of(corpus, [each.sample_id for each in found.samples], wanted.text)
    infos = [_info(*each, corpus, overview) for each in zip(found.samples, texts.texts, strict=True)]
    return SamplePage(
        run=run,
        as_of=found.as_of,
        samples=infos,
        signal=overview.config.signal,
        text_problem=texts.problem,
        cursor=_cursor(query.place_of(found.samples[-1])) if len(infos) == wanted.limit else None,
    )


def history_of(service: ReplayService, run: str, sample_id: int, text: bool = False) -> SampleHistory:
    """One rehearsed sample, visit by visit.

    Raises:
        UnknownSample: when nothing was reported of it.
        UnknownRun, CorpusError: when the run, or its corpus, is not there.
    """
    overview = service.journal.overview(run)
    corpus, unit = service.corpus_of(overview.record), _unit(overview)
    is_possible = 0 <= sample_id <= MAX_INT64
    found = service.journal.sample(run, sample_id, corpus.partition, unit) if is_possible else None
    if found is None:
        raise UnknownSample(f"nothing was reported of sample {sample_id} in run {run!r}; its samples can be listed")
    texts = _texts_of(corpus, [sample_id], text)
    info = _info(found.statistics, texts.texts[0], corpus, overview)
    return SampleHistory(
        **info.model_dump(),
        as_of=found.as_of,
        signal=overview.config.signal,
        text_problem=texts.problem,
        visits=[_visit(each) for each in found.reports],
    )


def _unit(overview: RunOverview) -> DamageUnit:
    config = overview.config
    return DamageUnit(config.signal, config.learnable_nats, config.delta_nats)


def _info(sample: SampleStatistics, text: str | None, corpus: Corpus, overview: RunOverview) -> SampleInfo:
    groups, num_quantiles = corpus.partition.groups, corpus.partition.num_quantiles
    return SampleInfo(
        **asdict(sample),
        stratum_name=stratum_name(groups, num_quantiles, sample.stratum),
        domain=groups[sample.stratum // num_quantiles],
        # Steps may be planned between the two looks into the journal.
        age_steps=max(0, overview.next_step - 1 - sample.last_step),
        text=text,
    )


def _visit(report: Reported) -> SampleVisit:
    (row,) = report.rows
    num_gains = int(row["num_gains"])
    return SampleVisit(
        step=report.step,
        rank=report.rank,
        loss_nats=float(row["loss_nats"]),
        num_tokens=int(row["num_tokens"]),
        num_flips=int(row["num_flips"]),
        num_gains=None if num_gains == GAINS_NOT_TOLD else num_gains,
    )


def _texts_of(corpus: Corpus, sample_ids: list[int], are_wanted: bool) -> _Texts:
    """The texts of samples. A corpus whose texts cannot be told says why, and its figures are told nevertheless."""
    nothing = [None] * len(sample_ids)
    if not are_wanted or not sample_ids:
        return _Texts(nothing)
    try:
        rows = corpus.rows(np.array(sample_ids, dtype=np.int64))
        if rows.inputs is not None:
            return _Texts(nothing, "the samples of this corpus are no text")
        texts = corpus.texts.of(rows.input_ids, rows.length)
    except CorpusError as error:
        return _Texts(nothing, error.detail)
    return _Texts([text if length else None for text, length in zip(texts, rows.length.tolist(), strict=True)])


def _cursor(place: tuple[float, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _place(cursor: str) -> tuple[float, int]:
    try:
        value, sample_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (ValueError, TypeError, RecursionError):
        value, sample_id = None, None
    is_value = type(value) in (int, float) and math.isfinite(value) and abs(value) <= MAX_INT64
    if not (is_value and type(sample_id) is int and 0 <= sample_id <= MAX_INT64):
        raise InvalidRequest("cursor is not one that an earlier page gave; leave it out to begin anew")
    return value, sample_id
