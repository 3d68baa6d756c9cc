"""Statistics: what a run has learned of its corpus."""

import numpy as np
from fastapi import APIRouter

from replay_service.gateway.models import RunStats, StrataList, StratumStats
from replay_service.gateway.problems import responses
from replay_service.gateway.service import Service
from replay_service.sampling.run_state import RunState

router = APIRouter(prefix="/v1/runs/{run}", tags=["statistics"])


@router.get("/stats", operation_id="get_stats", responses=responses(404, 422))
def get_stats(run: str, service: Service) -> RunStats:
    """A run's statistics over all strata."""
    return service.owners.get(run).read(lambda state: summarise(run, state))


@router.get("/strata", operation_id="get_strata", responses=responses(404, 422))
def get_strata(run: str, service: Service) -> StrataList:
    """The statistics, the damage rate and the probability of each stratum."""
    return service.owners.get(run).read(lambda state: list_strata(run, state))


def summarise(run: str, state: RunState) -> RunStats:
    totals = state.totals
    num_trained = state.next_step * state.config.global_batch_size
    num_rehearsed, num_reported = int(state.cursors.sum()), int(totals.samples.sum())
    num_tokens, num_flips = int(totals.tokens.sum()), int(totals.flips.sum())
    return RunStats(
        run=run,
        next_step=state.next_step,
        policy_version=state.policy_version,
        num_trained=num_trained,
        num_rehearsed=num_rehearsed,
        achieved_ratio=num_rehearsed / num_trained if num_trained else 0.0,
        num_reported=num_reported,
        num_pending=sum(len(pending.rows) for pending in state.pending.values()),
        num_tokens=num_tokens,
        num_flips=num_flips,
        flip_rate=_mean(num_flips, num_tokens),
        mean_loss_nats=_mean(totals.loss_nats.sum(), num_reported),
        mean_excess_nats=_mean(totals.excess_nats.sum(), num_reported),
    )


def list_strata(run: str, state: RunState) -> StrataList:
    partition, totals = state.partition, state.totals
    rates, probabilities = state.damage_rates(), state.probabilities()
    epochs = state.cursors // np.maximum(partition.sizes, 1)
    strata = [
        StratumStats(
            stratum=k,
            name=partition.name(k),
            domain=partition.groups[k // partition.num_quantiles],
            quantile=k % partition.num_quantiles,
            num_samples=int(partition.sizes[k]),
            num_drawn=int(state.cursors[k]),
            epoch=int(epochs[k]),
            num_reported=int(totals.samples[k]),
            num_tokens=int(totals.tokens[k]),
            num_flips=int(totals.flips[k]),
            mean_loss_nats=_mean(totals.loss_nats[k], totals.samples[k]),
            mean_excess_nats=_mean(totals.excess_nats[k], totals.samples[k]),
            damage_rate=float(rates[k]),
            probability=float(probabilities[k]),
        )
        for k in range(partition.num_strata)
    ]
    return StrataList(run=run, policy_version=state.policy_version, strata=strata)


def _mean(total: float, count: int) -> float | None:
    return float(total / count) if count else None
