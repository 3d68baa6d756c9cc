"""The statistics of a run, put together: routes and pages show the same."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from numpy.typing import NDArray

from replay_service.errors import ReplayError
from replay_service.gateway.advice import DomainFigures, Situation, advice_on
from replay_service.gateway.condition import facts_in, lifecycle_now, with_corpus
from replay_service.gateway.service import ReplayService
from replay_service.gateway.statistics_models import (
    AdviceInfo,
    ChangeInfo,
    DomainForgetting,
    DomainShares,
    ForgettingEstimate,
    GainPrediction,
    ReportDelayInfo,
    RunStats,
    StrataList,
    StratumStats,
    TrainedStats,
)
from replay_service.gateway.strata_choice import strata_in
from replay_service.gateway.times import iso_of, moment
from replay_service.ledger import event_log
from replay_service.ledger.event_text import text_of
from replay_service.ledger.lifecycle import RunFacts
from replay_service.ledger.progress import Point
from replay_service.ledger.records import RunRecord
from replay_service.ledger.report_delay import report_delay
from replay_service.ledger.run_view import RunView
from replay_service.sampling.forgetting import FirstVisits, Forgetting
from replay_service.sampling.partition import stratum_name
from replay_service.sampling.predicted_gain import Draws, predict_gain
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.run_state import RunState


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is copied from a run while it is held; all else is made of it afterwards, and nobody waits for that."""

    record: RunRecord
    point: Point
    facts: RunFacts
    config: RunConfig
    generation: int
    numbers: dict[str, Any]
    visits: FirstVisits
    draws: Draws
    pending: list[int]
    repeat_share: float

    @classmethod
    def of(cls, view: RunView) -> "_Seen":
        state = view.state
        return cls(
            view.record,
            view.point,
            facts_in(view),
            state.config,
            state.generation,
            numbers_of(state),
            state.first_visits(),
            Draws.of(state),
            sorted(state.pending),
            state.repeat_share(),
        )


def stats_of(service: ReplayService, run: str, max_age_s: float = 0.0) -> RunStats:
    """The statistics of a run over all strata.

    Estimates take most of the time. So watchers that look again and again take statistics that are a little older, and
    share them.

    Args:
        max_age_s: how old they may be; 0: of now.

    Raises:
        UnknownRun: when there is no such run.
    """
    return service.watched.statistics.get(_key(service, run), max_age_s, lambda: _stats_of(service, run))


def stats_at_hand(service: ReplayService, run: str, max_age_s: float, oldest_s: float) -> RunStats | None:
    """The same, up to `oldest_s` old while the work that watchers cause is too much; None where there are none then."""
    return service.watched.statistics.at_hand(_key(service, run), max_age_s, lambda: _stats_of(service, run), oldest_s)


def _key(service: ReplayService, run: str) -> str:
    """Another run of the name has other statistics, and so has the run after a rewind."""
    point = service.journal.point(run)
    return f"{run} {point.incarnation} {point.attempt}"


def _stats_of(service: ReplayService, run: str) -> RunStats:
    seen = service.readers.read(run, _Seen.of)
    facts = with_corpus(service, seen.facts, seen.record, seen.generation)
    now_ms, lifecycle = service.clock(), lifecycle_now(service, facts)
    corpus, *by_domain = seen.visits.of_all()
    gain = predict_gain(seen.visits, corpus, seen.draws)
    domains = _domains(service, seen, by_domain)
    delay = report_delay(service.journal.times, run, seen.point, seen.pending, now_ms)
    situation = Situation(
        lifecycle=lifecycle_now(service, seen.facts),
        problem=facts.problem,
        ownership=service.owners.ownership(run, seen.point.owner_epoch),
        silent_s=facts.silent_s(now_ms),
        late_steps=delay.late_steps,
        config=seen.config,
        ratio=seen.numbers["injection_ratio"],
        next_step=facts.next_step,
        corpus=corpus,
        domains=domains,
        gain=gain,
        repeat_share=seen.repeat_share,
    )
    return RunStats(
        run=run,
        **seen.numbers,
        **moment(seen.point, lifecycle),
        forgetting=ForgettingEstimate.of(corpus),
        forgetting_by_domain={each.name: ForgettingEstimate.of(each.forgetting) for each in domains},
        shares_by_domain={
            each.name: DomainShares(draw_share=each.draw_share, size_share=each.size_share) for each in domains
        },
        worst_domain=_worst(situation),
        budget_nats=seen.config.budget.nats if seen.config.is_auto else None,
        predicted_gain=GainPrediction.of(gain),
        report_delay=ReportDelayInfo(**asdict(delay)),
        last_change=_last_change(service, run, seen.point),
        advice=[AdviceInfo(**asdict(each)) for each in advice_on(situation)],
    )


def _domains(service: ReplayService, seen: _Seen, found: Sequence[Forgetting]) -> list[DomainFigures]:
    visits = seen.visits
    shares = [each.reshape(-1, visits.num_quantiles).sum(axis=1) for each in (seen.draws.probabilities, visits.sizes)]
    draw_share, size_share = (each / max(each.sum(), 1e-300) for each in shares)
    names = group_names(service, seen.record, len(found))
    return [DomainFigures(*each) for each in zip(names, found, draw_share.tolist(), size_share.tolist(), strict=True)]


def _worst(situation: Situation) -> DomainForgetting | None:
    worst = situation.worst()
    if worst is None:
        return None
    return DomainForgetting(name=worst.name, **ForgettingEstimate.of(worst.forgetting).model_dump())


def _last_change(service: ReplayService, run: str, point: Point) -> ChangeInfo | None:
    logged = event_log.last_change(service.journal, run, point)
    if logged is None:
        return None
    entry = logged.entry
    kind = type(entry.event).__name__.lower()
    return ChangeInfo(seq=entry.seq, kind=kind, text=text_of(logged), at=iso_of(entry.committed_at))


def group_names(service: ReplayService, record: RunRecord, num: int) -> list[str]:
    """The names of a run's groups; their numbers where its corpus is not there to name them."""
    try:
        return list(service.corpus_of(record).partition.groups[:num])
    except ReplayError:
        return [f"group {i}" for i in range(num)]


def numbers_of(state: RunState) -> dict[str, Any]:
    """What `RunStats` says of a run beside what it has forgotten."""
    totals = state.totals
    rows_rehearsed, num_reported = state.rows_rehearsed, int(totals.samples.sum())
    num_pending = sum(pending.num_awaited for pending in state.pending.values())
    num_added = rows_rehearsed if state.config.injection_mode == "add" else 0
    rows_planned = state.next_step * state.config.global_batch_size + num_added
    num_tokens, num_flips = int(totals.tokens.sum()), int(totals.flips.sum())
    return {
        "next_step": state.next_step,
        "policy_version": state.policy_version,
        "injection_ratio": float(state.config.schedule.at(state.next_step, state.ratio)),
        "rows_planned": rows_planned,
        "rows_due": float(state.rows_due_so_far),
        "rows_rehearsed": rows_rehearsed,
        "planned_ratio": rows_rehearsed / rows_planned if rows_planned else 0.0,
        "trained": _trained(state),
        "achieved_ratio": _mean(state.trained.counts.num_rehearsed_rows, state.trained.counts.num_rows),
        "num_reported": num_reported,
        "num_pending": num_pending,
        "num_unmeasured": rows_rehearsed - num_reported - num_pending,
        "num_tokens": num_tokens,
        "num_flips": num_flips,
        "flip_rate": _mean(num_flips, num_tokens),
        "num_gains": int(totals.gains.sum()),
        "gain_rate": _mean(int(totals.gains.sum()), int(totals.tokens_with_gains.sum())),
        "mean_loss_nats": _mean(totals.loss_nats.sum(), num_reported),
        "mean_excess_nats": _mean(totals.excess_nats.sum(), num_reported),
    }


def _trained(state: RunState) -> TrainedStats | None:
    trained = state.trained
    if not trained.next_step:
        return None
    return TrainedStats(next_step=min(trained.next_step.values()), **trained.counts._asdict())


def strata_of(service: ReplayService, run: str, domain: str | None = None) -> StrataList:
    """The statistics of each stratum of a run, or of one domain.

    Raises:
        UnknownRun: when there is no such run.
        InvalidRequest: when its corpus has no such domain.
        CorpusError: when its corpus is not there to name the strata.
    """
    # Arrays are copied while the run is held, and the answer is made outside: nobody waits for it.
    seen = service.readers.read(run, _StrataSeen.of)
    partition = service.corpus_of(seen.record).partition
    num_quantiles, num = seen.num_quantiles, len(seen.columns["num_samples"])
    chosen = strata_in(partition, domain=domain)
    # The corpus may have grown by strata that the run does not see.
    strata = [k for k in (range(num) if chosen is None else chosen) if k < num]
    columns = {name: values[strata].tolist() for name, values in seen.columns.items()}
    named = [
        StratumStats(
            stratum=k,
            name=stratum_name(partition.groups, num_quantiles, k),
            domain=partition.groups[k // num_quantiles],
            quantile=k % num_quantiles,
            mean_loss_nats=_mean(columns["loss_nats"][i], columns["num_reported"][i]),
            mean_excess_nats=_mean(columns["excess_nats"][i], columns["num_reported"][i]),
            damage_rate=columns["damage_rate"][i] if seen.has_damage else None,
            **{name: columns[name][i] for name in _PLAIN},
        )
        for i, k in enumerate(strata)
    ]
    return StrataList(run=run, as_of=seen.as_of, policy_version=seen.policy_version, strata=named)


@dataclass(frozen=True, slots=True)
class _StrataSeen:
    """What is copied of every stratum while a run is held."""

    record: RunRecord
    as_of: int
    policy_version: int
    num_quantiles: int
    has_damage: bool
    columns: dict[str, NDArray[Any]]

    @classmethod
    def of(cls, view: RunView) -> "_StrataSeen":
        state = view.state
        totals, cursors, recent = state.totals, state.cursors, state.recent.count
        columns = {
            "num_samples": cursors.sizes,
            "num_drawn": cursors.num_draws,
            "epoch": cursors.epoch,
            "num_reported": totals.samples,
            "num_tokens": totals.tokens,
            "num_flips": totals.flips,
            "num_gains": totals.gains,
            "loss_nats": totals.loss_nats,
            "excess_nats": totals.excess_nats,
            "reports_recent": recent[0] + recent[1],
            "damage_rate": state.damage_rates(),
            "draw_share": state.probabilities(),
        }
        copies = {name: each.copy() for name, each in columns.items()}
        return cls(view.record, view.point.as_of, state.policy_version, state.num_quantiles, state.has_damage(), copies)


_PLAIN: Final = (
    "num_samples",
    "num_drawn",
    "epoch",
    "num_reported",
    "num_tokens",
    "num_flips",
    "num_gains",
    "reports_recent",
    "draw_share",
)


def _mean(total: float, count: int) -> float | None:
    return float(total / count) if count else None
