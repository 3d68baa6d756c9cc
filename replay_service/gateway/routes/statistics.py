"""Statistics: what a run has learned of its corpus."""

from collections.abc import Sequence

from fastapi import APIRouter

from replay_service.gateway.middleware.access import READ, RunName
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import RunStats, StrataList, StratumStats, TrainedStats
from replay_service.gateway.service import Service
from replay_service.sampling.partition import stratum_name
from replay_service.sampling.run_state import RunState

router = APIRouter(prefix="/v1/runs/{run}", tags=["statistics"])


@router.get("/stats", operation_id="get_stats", dependencies=READ, responses=responses(404, 422))
def get_stats(run: RunName, service: Service) -> RunStats:
    """A run's statistics over all strata."""
    return service.owners.get(run).read(lambda state: summarise(run, state))


@router.get("/strata", operation_id="get_strata", dependencies=READ, responses=responses(404, 422))
def get_strata(run: RunName, service: Service) -> StrataList:
    """The statistics, the damage rate and the probability of each stratum."""
    owner = service.owners.get(run)
    groups = service.corpus_of(owner.record).partition.groups
    return owner.read(lambda state: list_strata(run, state, groups))


def summarise(run: str, state: RunState) -> RunStats:
    totals = state.totals
    num_rehearsed, num_reported = int(state.walk.num_draws.sum()), int(totals.samples.sum())
    num_pending = sum(pending.num_awaited for pending in state.pending.values())
    num_added = num_rehearsed if state.config.injection_mode == "add" else 0
    num_planned = state.next_step * state.config.global_batch_size + num_added
    forgetting = state.forgetting()
    num_tokens, num_flips = int(totals.tokens.sum()), int(totals.flips.sum())
    return RunStats(
        run=run,
        next_step=state.next_step,
        policy_version=state.policy_version,
        injection_ratio=float(state.config.schedule.at(state.next_step, state.ratio)),
        num_planned=num_planned,
        num_rehearsed=num_rehearsed,
        planned_ratio=num_rehearsed / num_planned if num_planned else 0.0,
        trained=_trained(state),
        achieved_ratio=_mean(state.trained.counts.num_rehearsed_rows, state.trained.counts.num_rows),
        num_reported=num_reported,
        num_pending=num_pending,
        num_unmeasured=num_rehearsed - num_reported - num_pending,
        num_tokens=num_tokens,
        num_flips=num_flips,
        flip_rate=_mean(num_flips, num_tokens),
        mean_loss_nats=_mean(totals.loss_nats.sum(), num_reported),
        mean_excess_nats=_mean(totals.excess_nats.sum(), num_reported),
        forgetting_nats=None if forgetting is None else forgetting.nats,
        forgetting_standard_error=None if forgetting is None else forgetting.standard_error,
    )


def _trained(state: RunState) -> TrainedStats | None:
    trained = state.trained
    if not trained.next_step:
        return None
    return TrainedStats(next_step=min(trained.next_step.values()), **trained.counts._asdict())


def list_strata(run: str, state: RunState, groups: Sequence[str]) -> StrataList:
    """Every stratum; `groups` names at least the groups of the state's generation."""
    totals, walk, sizes = state.totals, state.walk, state.walk.sizes
    rates, probabilities = state.damage_rates(), state.probabilities()
    strata = [
        StratumStats(
            stratum=k,
            name=stratum_name(groups, state.num_quantiles, k),
            domain=groups[k // state.num_quantiles],
            quantile=k % state.num_quantiles,
            num_samples=int(sizes[k]),
            num_drawn=int(walk.num_draws[k]),
            epoch=int(walk.epoch[k]),
            num_reported=int(totals.samples[k]),
            num_tokens=int(totals.tokens[k]),
            num_flips=int(totals.flips[k]),
            mean_loss_nats=_mean(totals.loss_nats[k], totals.samples[k]),
            mean_excess_nats=_mean(totals.excess_nats[k], totals.samples[k]),
            damage_rate=float(rates[k]),
            probability=float(probabilities[k]),
        )
        for k in range(state.num_strata)
    ]
    return StrataList(run=run, policy_version=state.policy_version, strata=strata)


def _mean(total: float, count: int) -> float | None:
    return float(total / count) if count else None
