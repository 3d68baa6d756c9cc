"""Statistics: what a run has learned of its corpus."""

from collections.abc import Sequence
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
from replay_service.gateway.service import ReplayService, Service
from replay_service.ledger.journal import RunRecord
from replay_service.sampling.partition import stratum_name
from replay_service.sampling.predicted_gain import Draws, predict_gain
from replay_service.sampling.run_state import RunState

router = APIRouter(prefix="/v1/runs/{run}", tags=["statistics"])


@router.get("/stats", operation_id="get_stats", dependencies=READ, responses=responses(404, 422))
def get_stats(run: RunName, service: Service) -> RunStats:
    """A run's statistics over all strata, what it has forgotten, and what drawing by damage is worth to it."""
    owner = service.owners.get(run)
    # The estimates are made outside: nobody waits for them.
    numbers, visits, draws = owner.read(lambda state: (numbers_of(state), state.first_visits(), Draws.of(state)))
    present = visits.of_corpus()
    by_domain = [ForgettingEstimate.of(each) for each in visits.of_domains()]
    names = _domains(service, owner.record, len(by_domain))
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
    owner = service.owners.get(run)
    groups = service.corpus_of(owner.record).partition.groups
    return owner.read(lambda state: list_strata(run, state, groups))


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


def list_strata(run: str, state: RunState, groups: Sequence[str]) -> StrataList:
    """Every stratum; `groups` names at least the groups of the state's generation."""
    totals, cursors, sizes = state.totals, state.cursors, state.cursors.sizes
    rates, probabilities = state.damage_rates() if state.has_damage() else None, state.probabilities()
    strata = [
        StratumStats(
            stratum=k,
            name=stratum_name(groups, state.num_quantiles, k),
            domain=groups[k // state.num_quantiles],
            quantile=k % state.num_quantiles,
            num_samples=int(sizes[k]),
            num_drawn=int(cursors.num_draws[k]),
            epoch=int(cursors.epoch[k]),
            num_reported=int(totals.samples[k]),
            num_tokens=int(totals.tokens[k]),
            num_flips=int(totals.flips[k]),
            num_gains=int(totals.gains[k]),
            mean_loss_nats=_mean(totals.loss_nats[k], totals.samples[k]),
            mean_excess_nats=_mean(totals.excess_nats[k], totals.samples[k]),
            damage_rate=None if rates is None else float(rates[k]),
            probability=float(probabilities[k]),
        )
        for k in range(state.num_strata)
    ]
    return StrataList(run=run, policy_version=state.policy_version, strata=strata)


def _mean(total: float, count: int) -> float | None:
    return float(total / count) if count else None
