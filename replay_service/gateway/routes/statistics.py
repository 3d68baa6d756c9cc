"""Statistics: what a run has learned of its corpus."""

from typing import Any

from fastapi import APIRouter

from replay_service.errors import ReplayError
from replay_service.gateway.middleware.access import READ, RunName
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import (
    ForgettingEstimate,
    GainPrediction,
    RunStats,
    StrataList,
    StratumStats,
    TrainedStats,
)
from replay_service.gateway.routes.strict import StrictRoute
from replay_service.gateway.service import ReplayService, Service
from replay_service.gateway.times import moment
from replay_service.ledger.journal import RunRecord
from replay_service.ledger.run_view import RunView
from replay_service.sampling.forgetting import FirstVisits
from replay_service.sampling.partition import stratum_name
from replay_service.sampling.predicted_gain import Draws, predict_gain
from replay_service.sampling.run_state import RunState

router = APIRouter(prefix="/v1/runs/{run}", tags=["statistics"], route_class=StrictRoute)


@router.get("/stats", operation_id="get_stats", dependencies=READ, responses=responses(404, 422))
def get_stats(run: RunName, service: Service) -> RunStats:
    """A run's statistics over all strata, what it has forgotten, and what drawing by damage is worth to it."""

    def view_of(view: RunView) -> tuple[RunRecord, dict[str, Any], FirstVisits, Draws]:
        numbers = numbers_of(view.state) | moment(view.point)
        return view.record, numbers, view.state.first_visits(), Draws.of(view.state)

    # The estimates are made outside: nobody waits for them.
    record, numbers, visits, draws = service.readers.read(run, view_of)
    present = visits.of_corpus()
    by_domain = [ForgettingEstimate.of(each) for each in visits.of_domains()]
    names = _domains(service, record, len(by_domain))
    return RunStats(
        run=run,
        **numbers,
        forgetting=ForgettingEstimate.of(present),
        forgetting_by_domain=dict(zip(names, by_domain, strict=True)),
        predicted_gain=GainPrediction.of(predict_gain(visits, present, draws)),
    )


@router.get("/strata", operation_id="get_strata", dependencies=READ, responses=responses(404, 422))
def get_strata(run: RunName, service: Service) -> StrataList:
    """The statistics, the damage rate and the probability of each stratum."""
    # The answer is made outside: nobody waits for it.
    view, strata = service.readers.read(run, lambda view: (_head(view), _columns(view.state)))
    record, as_of, policy_version, num_quantiles = view
    groups = service.corpus_of(record).partition.groups
    named = [
        StratumStats(
            stratum=k,
            name=stratum_name(groups, num_quantiles, k),
            domain=groups[k // num_quantiles],
            quantile=k % num_quantiles,
            **dict(zip(strata, values, strict=True)),
        )
        for k, values in enumerate(zip(*strata.values(), strict=True))
    ]
    return StrataList(run=run, as_of=as_of, policy_version=policy_version, strata=named)


def _domains(service: ReplayService, record: RunRecord, num: int) -> list[str]:
    """The names of a run's groups; their numbers where its corpus is not there to name them."""
    try:
        return list(service.corpus_of(record).partition.groups[:num])
    except ReplayError:
        return [f"group {i}" for i in range(num)]


def numbers_of(state: RunState) -> dict[str, Any]:
    """What `RunStats` says of a run beside what it has forgotten."""
    totals = state.totals
    num_rehearsed, num_reported = int(state.cursors.num_draws.sum()), int(totals.samples.sum())
    num_pending = sum(pending.num_awaited for pending in state.pending.values())
    num_added = num_rehearsed if state.config.injection_mode == "add" else 0
    num_planned = state.next_step * state.config.global_batch_size + num_added
    num_tokens, num_flips = int(totals.tokens.sum()), int(totals.flips.sum())
    return {
        "next_step": state.next_step,
        "policy_version": state.policy_version,
        "injection_ratio": float(state.config.schedule.at(state.next_step, state.ratio)),
        "num_planned": num_planned,
        "num_rehearsed": num_rehearsed,
        "planned_ratio": num_rehearsed / num_planned if num_planned else 0.0,
        "trained": _trained(state),
        "achieved_ratio": _mean(state.trained.counts.num_rehearsed_rows, state.trained.counts.num_rows),
        "num_reported": num_reported,
        "num_pending": num_pending,
        "num_unmeasured": num_rehearsed - num_reported - num_pending,
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


def _head(view: RunView) -> tuple[RunRecord, int, int, int]:
    return view.record, view.point.as_of, view.state.policy_version, view.state.num_quantiles


def _columns(state: RunState) -> dict[str, list[Any]]:
    """The numbers of every stratum that `StratumStats` holds, by name."""
    totals, cursors, num = state.totals, state.cursors, state.num_strata
    return {
        "num_samples": cursors.sizes.tolist(),
        "num_drawn": cursors.num_draws.tolist(),
        "epoch": cursors.epoch.tolist(),
        "num_reported": totals.samples.tolist(),
        "num_tokens": totals.tokens.tolist(),
        "num_flips": totals.flips.tolist(),
        "num_gains": totals.gains.tolist(),
        "mean_loss_nats": [_mean(totals.loss_nats[k], totals.samples[k]) for k in range(num)],
        "mean_excess_nats": [_mean(totals.excess_nats[k], totals.samples[k]) for k in range(num)],
        "damage_rate": state.damage_rates().tolist() if state.has_damage() else [None] * num,
        "probability": state.probabilities().tolist(),
    }


def _mean(total: float, count: int) -> float | None:
    return float(total / count) if count else None
