"""Per-sample statistics: what was measured of each rehearsed sample, derived from the reports.

They are derived data and catch up with the journal when somebody asks, so a report pays nothing for them. A report's
rows travel to the database as one JSON document and are merged there, which costs no Python a row.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from sqlalchemy import Column, ColumnElement, Connection, Double, and_, case, cast, delete, or_, select, text, update

from replay_service.ledger.schema import events, sample_progress, samples
from replay_service.sampling.damage import Signal
from replay_service.sampling.events import Reported
from replay_service.sampling.partition import Partition

SampleOrder = Literal["sample_id", "damage", "excess_loss", "loss", "visits", "last_step", "flips"]
SAMPLE_ORDERS: Final[tuple[str, ...]] = get_args(SampleOrder)
_COLUMN_OF: Final[dict[str, Column[Any]]] = {
    "sample_id": samples.c.sample_id,
    "excess_loss": samples.c.excess_nats,
    "loss": samples.c.loss_nats,
    "visits": samples.c.num_visits,
    "last_step": samples.c.last_step,
    "flips": samples.c.num_flips,
}
_NAME_OF: Final = {order: column.name for order, column in _COLUMN_OF.items()} | {"damage": "damage"}


@dataclass(frozen=True, slots=True)
class DamageUnit:
    """The unit of damage: a run's signal, and its bounds, as in `RunConfig`."""

    signal: Signal = "token_flip"
    learnable_nats: float = 3.0
    delta_nats: float = 0.1


TOKEN_FLIPS: Final = DamageUnit()


@dataclass(frozen=True, slots=True)
class SampleStatistics:
    """Measurements of one sample: `loss_nats`, `excess_nats` and `damage` at its last step, the rest over all visits.

    `damage` is in the unit that was asked for.
    """

    sample_id: int
    stratum: int
    num_visits: int
    first_step: int
    last_step: int
    base_loss_nats: float
    loss_nats: float
    excess_nats: float
    num_tokens: int
    num_flips: int
    damage: float


@dataclass(frozen=True, slots=True)
class SampleQuery:
    """One page of samples: those after the place (value of the order, sample id), in some strata or in all (None)."""

    order: SampleOrder
    descending: bool
    limit: int
    strata: tuple[int, ...] | None = None
    after: tuple[float, int] | None = None
    unit: DamageUnit = TOKEN_FLIPS

    def place_of(self, sample: SampleStatistics) -> tuple[float, int]:
        """Where a sample stands in this order."""
        return getattr(sample, _NAME_OF[self.order]), sample.sample_id


def hold(connection: Connection, run: str) -> tuple[int, int]:
    """Keep everybody else from merging into a run's samples; the first event that is not in them, and the attempt."""
    mine = sample_progress.c.run == run
    first_time = text("INSERT INTO sample_progress (run, seq) VALUES (:run, 0) ON CONFLICT DO NOTHING")
    connection.execute(first_time, {"run": run})
    connection.execute(update(sample_progress).where(mine).values(seq=sample_progress.c.seq))
    seq, attempt = connection.execute(select(sample_progress.c.seq, sample_progress.c.attempt).where(mine)).one()
    return seq, attempt


def continued(connection: Connection, run: str, held: tuple[int, int], attempt: int) -> int:
    """The first event to merge in this attempt of the run: those of another attempt begin anew."""
    first_seq, held_attempt = held
    if held_attempt == attempt:
        return first_seq
    connection.execute(delete(samples).where(samples.c.run == run))
    anew = update(sample_progress).where(sample_progress.c.run == run)
    connection.execute(anew.values(seq=0, attempt=attempt))
    return 0


def next_seq(connection: Connection, run: str) -> int | None:
    """The first event that is not in the samples; None where they are of another attempt than the run's present one."""
    last = select(events.c.attempt).where(events.c.run == run).order_by(events.c.seq.desc()).limit(1)
    mine = (sample_progress.c.run == run) & (sample_progress.c.attempt == last.scalar_subquery())
    seq: int | None = connection.execute(select(sample_progress.c.seq).where(mine)).scalar_one_or_none()
    return seq


def merge(connection: Connection, run: str, reports: Iterable[Reported], partition: Partition, next_seq: int) -> None:
    """Merge reports into the statistics of their samples; `next_seq` is the first event that is not in them then."""
    statement = text(_MERGE.format(rows=_ROWS[connection.dialect.name]))
    for event in reports:
        measured = event.rows[event.rows["num_tokens"] > 0]
        columns = [measured[name].tolist() for name in measured.dtype.names or ()]
        strata = partition.stratum_of(measured["sample_id"]).tolist()
        rows = json.dumps(list(zip(strata, *columns, strict=True)))
        connection.execute(statement, {"run": run, "step": event.step, "rows": rows})
    connection.execute(update(sample_progress).where(sample_progress.c.run == run).values(seq=next_seq))


def forget(connection: Connection, run: str) -> None:
    """Begin anew: the next `merge` starts with the first event."""
    connection.execute(delete(samples).where(samples.c.run == run))
    connection.execute(delete(sample_progress).where(sample_progress.c.run == run))


def page(connection: Connection, run: str, query: SampleQuery) -> list[SampleStatistics]:
    damage = damage_of(query.unit)
    column = damage if query.order == "damage" else _COLUMN_OF[query.order]
    statement = select(samples, damage.label("damage")).where(samples.c.run == run)
    if query.strata is not None:
        statement = statement.where(samples.c.stratum.in_(query.strata))
    if query.after is not None:
        value, sample_id = query.after
        further = column < value if query.descending else column > value
        statement = statement.where(or_(further, and_(column == value, samples.c.sample_id > sample_id)))
    statement = statement.order_by(column.desc() if query.descending else column, samples.c.sample_id)
    return [_statistics(row) for row in connection.execute(statement.limit(query.limit))]


def one(connection: Connection, run: str, sample_id: int, unit: DamageUnit) -> SampleStatistics | None:
    mine = (samples.c.run == run) & (samples.c.sample_id == sample_id)
    row = connection.execute(select(samples, damage_of(unit).label("damage")).where(mine)).first()
    return None if row is None else _statistics(row)


def damage_of(unit: DamageUnit) -> ColumnElement[float]:
    """The damage at a sample's last visit, as `replay_service.sampling.damage` has it, in SQL."""
    each = samples.c
    gains = case((each.last_gains > 0, each.last_gains), else_=0)
    lost = case((each.last_flips > gains, each.last_flips - gains), else_=0)
    is_damaged = and_(each.base_loss_nats <= unit.learnable_nats, each.excess_nats > unit.delta_nats)
    found: dict[Signal, ColumnElement[Any]] = {
        "token_flip": cast(each.last_flips, Double) / each.last_tokens,
        "net_flip": cast(lost, Double) / each.last_tokens,
        "excess_loss": case((each.excess_nats > 0.0, each.excess_nats), else_=0.0),
        "threshold": case((is_damaged, 1.0), else_=0.0),
    }
    return found[unit.signal]


def _statistics(row: Any) -> SampleStatistics:
    return SampleStatistics(**{name: getattr(row, name) for name in SampleStatistics.__dataclass_fields__})


_ROWS: Final = {
    "sqlite": """
        SELECT json_extract(value, '$[0]') AS stratum, json_extract(value, '$[1]') AS sample_id,
               json_extract(value, '$[2]') AS loss, json_extract(value, '$[3]') AS base_loss,
               json_extract(value, '$[4]') AS num_tokens, json_extract(value, '$[5]') AS num_flips,
               json_extract(value, '$[6]') AS num_gains
        FROM json_each(:rows)""",
    "postgresql": """
        SELECT CAST(value ->> 0 AS integer) AS stratum, CAST(value ->> 1 AS bigint) AS sample_id,
               CAST(value ->> 2 AS double precision) AS loss, CAST(value ->> 3 AS double precision) AS base_loss,
               CAST(value ->> 4 AS bigint) AS num_tokens, CAST(value ->> 5 AS bigint) AS num_flips,
               CAST(value ->> 6 AS integer) AS num_gains
        FROM json_array_elements(CAST(:rows AS json)) AS value""",
}

_MERGE: Final = """
    INSERT INTO samples (run, sample_id, stratum, num_visits, first_step, last_step, base_loss_nats, loss_nats,
                         excess_nats, num_tokens, num_flips, last_tokens, last_flips, last_gains)
    SELECT :run, sample_id, stratum, 1, :step, :step, base_loss, loss, loss - base_loss, num_tokens, num_flips,
           num_tokens, num_flips, num_gains
    FROM ({rows}) AS reported WHERE true
    ON CONFLICT (run, sample_id) DO UPDATE SET
        num_visits = samples.num_visits + 1,
        num_tokens = samples.num_tokens + excluded.num_tokens,
        num_flips = samples.num_flips + excluded.num_flips,
        loss_nats = CASE WHEN excluded.last_step < samples.last_step THEN samples.loss_nats
                         ELSE excluded.loss_nats END,
        excess_nats = CASE WHEN excluded.last_step < samples.last_step THEN samples.excess_nats
                           ELSE excluded.excess_nats END,
        last_tokens = CASE WHEN excluded.last_step < samples.last_step THEN samples.last_tokens
                           ELSE excluded.last_tokens END,
        last_flips = CASE WHEN excluded.last_step < samples.last_step THEN samples.last_flips
                          ELSE excluded.last_flips END,
        last_gains = CASE WHEN excluded.last_step < samples.last_step THEN samples.last_gains
                          ELSE excluded.last_gains END,
        first_step = CASE WHEN excluded.first_step < samples.first_step THEN excluded.first_step
                          ELSE samples.first_step END,
        last_step = CASE WHEN excluded.last_step < samples.last_step THEN samples.last_step
                         ELSE excluded.last_step END
"""
