"""Small partitions, journals and comparisons that tests of the pure core, and of the ledger, share."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from replay_service.sampling.events import PLANNED_ROW, REPORTED_ROW, Adopted, Created, Event, Planned, Reported
from replay_service.sampling.fold import fold
from replay_service.sampling.partition import Partition, extents_of
from replay_service.sampling.plan import plan_steps
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.run_state import RunState


def partition_of(segments: Sequence[Sequence[int]], num_strata: int, num_quantiles: int = 1) -> Partition:
    """The partition of a corpus whose segments' rows have these strata; each segment is sorted here."""
    extents = [
        extent
        for number, strata in enumerate(segments)
        for extent in extents_of(number, np.sort(np.array(strata, dtype=np.int64)))
    ]
    groups = tuple(f"g{i}" for i in range(num_strata // num_quantiles))
    return Partition(groups, num_quantiles, tuple(sorted(extents)))


def partition_of_sizes(sizes: Sequence[int], num_quantiles: int = 1) -> Partition:
    """A partition with strata of these sizes, over two segments, most strata having rows in both."""
    strata = np.repeat(np.arange(len(sizes)), sizes)
    return partition_of([strata[::2].tolist(), strata[1::2].tolist()], len(sizes), num_quantiles)


def plans_of(state: RunState, last_step: int) -> list[Planned]:
    """The plans up to `last_step`, of a corpus as `initial_state` makes them."""
    return plan_steps(state, partition_of_sizes(state.cursors.sizes.tolist(), state.num_quantiles), last_step)


def planned(state: RunState, last_step: int) -> list[Planned]:
    """Plan up to `last_step` and fold the plans in."""
    plans = plans_of(state, last_step)
    for each in plans:
        fold(state, each)
    return plans


def plan_by_hand(step: int, sample_ids: Sequence[int], strata: Sequence[int], times_drawn: int = 1) -> Planned:
    rows = np.zeros(len(sample_ids), dtype=PLANNED_ROW)
    rows["sample_id"], rows["stratum"], rows["times_drawn"] = sample_ids, strata, times_drawn
    return Planned(step, 1, 0, rows)


def report_of(
    step: int,
    sample_ids: Sequence[int] | NDArray[np.int64],
    *,
    rank: int = 0,
    loss: float | Sequence[float] = 2.0,
    base_loss: float = 1.0,
    num_tokens: int | Sequence[int] = 10,
    num_flips: int | Sequence[int] = 5,
    num_gains: int | Sequence[int] = 0,
) -> Reported:
    rows = np.zeros(len(sample_ids), dtype=REPORTED_ROW)
    rows["sample_id"], rows["loss_nats"], rows["base_loss_nats"] = sample_ids, loss, base_loss
    rows["num_tokens"], rows["num_flips"], rows["num_gains"] = num_tokens, num_flips, num_gains
    return Reported(step, rank, rows)


def initial_state(sizes: Sequence[int], *, num_quantiles: int = 1, **config: object) -> RunState:
    """Nothing is held back unless `config` says so: an epoch draws every row."""
    defaults: dict[str, object] = {"global_batch_size": 8, "injection_ratio": "0.5", "seed": 7, "held_back": 0.0}
    settings = {**defaults, **config}
    return RunState.initial(created_of(sizes, num_quantiles, RunConfig(**settings)))  # type: ignore[arg-type]


def created_of(sizes: Sequence[int], num_quantiles: int, config: RunConfig) -> Created:
    return Created(config, 1, num_quantiles, tuple(sizes))


def image(state: RunState) -> dict[str, object]:
    """Everything that a state remembers, down to the bytes: two states are the same if and only if these are equal."""
    arrays = {
        **{
            name: getattr(state.cursors, name)
            for name in ("num_draws", "epoch", "sizes", "block_size", "block_drawn", "born")
        },
        **{name: getattr(state.totals, name) for name in ("samples", "tokens", "flips", "loss_nats", "excess_nats")},
        "recent sums": state.recent.sums,
        "first visits": state.latest[0].rows,
        "later visits": state.latest[1].rows,
    }
    return {
        "origin": (state.recent.origin, state.recent.reference, state.recent.half_life),
        "next_step": state.next_step,
        "policy_version": state.policy_version,
        "ratio": (state.ratios, state.steady_since, state.carry),
        "generation": (state.generation, state.generation_since, state.num_quantiles),
        "closed": state.closed,
        "config": state.config,
        "held": {step: rows.tobytes() for step, rows in state.held.items()},
        "pending": {step: each.rows.tobytes() for step, each in state.pending.items()},
        **{name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()},
    }


def lived(data: st.DataObject) -> tuple[list[Event], RunState]:
    """A journal of plans, reports and adopted generations as a run might see them, and the state after it."""
    state = initial_state([5, 9, 3, 8], num_quantiles=2, report_window_steps=6)
    journal: list[Event] = []
    for _ in range(data.draw(st.integers(1, 12), label="turns")):
        if data.draw(st.integers(0, 4), label="adopt now") == 4:
            more = data.draw(st.lists(st.integers(0, 3), min_size=state.num_strata, max_size=state.num_strata))
            new = data.draw(st.sampled_from([(), (2, 1)]), label="new strata")
            sizes = (*(state.cursors.sizes + np.array(more)).tolist(), *new)
            event: Event = Adopted(state.next_step - 1, state.generation + 1, sizes)
            fold(state, event)
            journal.append(event)
        elif state.pending and data.draw(st.booleans(), label="report now"):
            step = data.draw(st.sampled_from(sorted(state.pending)), label="step")
            waiting = state.pending[step].rows["sample_id"].tolist()
            chosen = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True), label="samples")
            num_tokens = data.draw(st.sampled_from([0, 10]), label="tokens")
            loss = data.draw(st.floats(0, 9), label="loss")
            event = report_of(step, chosen, loss=loss, num_tokens=num_tokens, num_flips=num_tokens // 2)
            fold(state, event)
            journal.append(event)
        else:
            journal += planned(state, state.next_step + data.draw(st.integers(0, 3), label="more"))
    return journal, state


def same_plan(left: Planned, right: Planned) -> bool:
    return (left.step, left.policy_version, left.rows.tobytes()) == (
        right.step,
        right.policy_version,
        right.rows.tobytes(),
    )
