"""The second schema: when events were committed, and how far each run is, in columns of `runs`."""

import json
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_IS_RARE: Final = sa.text("kind NOT IN ('planned', 'reported', 'trained')")
_OF_RUNS: Final = ("num_events", "attempt", "next_step", "closed", "generation", "config")


def upgrade() -> None:
    for column in _new_columns():
        op.add_column("runs", column)
    op.add_column("events", sa.Column("committed_at", sa.BigInteger, nullable=True))
    op.add_column("sample_progress", sa.Column("attempt", sa.Integer, nullable=False, server_default=sa.text("1")))
    op.create_index("rare_events", "events", ["run", "kind", "seq"], sqlite_where=_IS_RARE, postgresql_where=_IS_RARE)
    _fill_in()


def _new_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("incarnation", sa.BigInteger, nullable=True),
        sa.Column("num_events", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sa.Column("attempt", sa.Integer, nullable=False, server_default=sa.text("1")),
        sa.Column("next_step", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("closed", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("generation", sa.BigInteger, nullable=True),
        sa.Column("config", sa.LargeBinary, nullable=True),
        sa.Column("planned_at", sa.BigInteger, nullable=True),
        sa.Column("reported_at", sa.BigInteger, nullable=True),
    ]


def _fill_in() -> None:
    """How far the runs are that are there already, as their events tell it."""
    connection = op.get_bind()
    names = ["run", "seq", "attempt", "kind", "step", "payload"]
    events = sa.table("events", *map(sa.column, names))
    runs = sa.table("runs", *map(sa.column, ("run", *_OF_RUNS)))
    numbers = sa.select(events.c.run, sa.func.max(events.c.seq) + 1, sa.func.max(events.c.attempt)).group_by("run")
    ends = {run: (num_events, attempt) for run, num_events, attempt in connection.execute(numbers)}
    told = ("configured", "adopted", "closed", "rewound")
    changes = sa.select(events).where(events.c.kind.in_(told)).order_by(events.c.run, events.c.seq)
    changed = {run: _after(list(rows)) for run, rows in groupby(connection.execute(changes), lambda row: row.run)}
    for run, (num_events, attempt) in ends.items():
        made = sa.select(sa.func.max(events.c.step)).where(
            events.c.run == run, events.c.attempt == attempt, events.c.kind.in_(("planned", "rewound"))
        )
        last_step = connection.execute(made).scalar_one()
        next_step = 0 if last_step is None else last_step + 1
        values = {"num_events": num_events, "attempt": attempt, "next_step": next_step, **changed.get(run, {})}
        connection.execute(sa.update(runs).where(runs.c.run == run).values(**values))


def _after(rows: list[Any]) -> dict[str, object]:
    """What the rare events of a run, in their order, leave it with."""
    standing: list[Any] = []
    for row in rows:
        if row.kind == "rewound":
            standing = [each for each in standing if each.step <= row.step]
        else:
            standing.append(row)
    found: dict[str, object] = {}
    for row in standing:
        match row.kind:
            case "configured":
                found["config"] = row.payload
            case "adopted":
                found["generation"] = json.loads(row.payload)["generation"]
            case _:
                found["closed"] = True
    return found


def downgrade() -> None:
    op.drop_index("rare_events", "events")
    op.drop_column("sample_progress", "attempt")
    op.drop_column("events", "committed_at")
    for column in _new_columns():
        op.drop_column("runs", column.name)
