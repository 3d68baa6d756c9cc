"""The tables of the ledger. Migrations make them: a change here comes with one, and a test compares the two."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    false,
    text,
)

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("corpus", String(64), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("owner_epoch", BigInteger, nullable=False),
    # A random number that tells the run from others of its name; runs of the first schema have none.
    Column("incarnation", BigInteger, nullable=True),
    # How far the run is, written in the transaction of its latest event. Null: as it was created, or never.
    Column("num_events", BigInteger, nullable=False, server_default=text("1")),
    Column("attempt", Integer, nullable=False, server_default=text("1")),
    Column("next_step", BigInteger, nullable=False, server_default=text("0")),
    Column("closed", Boolean, nullable=False, server_default=false()),
    Column("generation", BigInteger, nullable=True),
    Column("config", LargeBinary, nullable=True),
    Column("planned_at", BigInteger, nullable=True),
    Column("reported_at", BigInteger, nullable=True),
    Column("trained_at", BigInteger, nullable=True),
    # The corpus's, as it was when the run was created; null where nobody wrote it down.
    Column("corpus_fingerprint", String(64), nullable=True),
    # The first step that is none of the job's, as it said when it ended; -1: it has not.
    Column("job_end", BigInteger, nullable=False, server_default=text("-1")),
)

events = Table(
    "events",
    metadata,
    Column("run", String(64), ForeignKey("runs.run"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("policy_version", BigInteger, nullable=True),
    Column("rehearsed_before", BigInteger, nullable=True),
    Column("rank", Integer, nullable=True),
    Column("payload", LargeBinary, nullable=False),
    # Milliseconds since 1970-01-01 UTC; events of the first schema have none.
    Column("committed_at", BigInteger, nullable=True),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("run", String(64), ForeignKey("runs.run"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("next_step", BigInteger, nullable=False),
    Column("state", LargeBinary, nullable=False),
)

samples = Table(
    "samples",
    metadata,
    Column("run", String(64), ForeignKey("runs.run"), primary_key=True),
    Column("sample_id", BigInteger, primary_key=True, autoincrement=False),
    Column("stratum", Integer, nullable=False),
    Column("num_visits", Integer, nullable=False),
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    Column("base_loss_nats", Double, nullable=False),
    Column("loss_nats", Double, nullable=False),
    Column("excess_nats", Double, nullable=False),
    Column("num_tokens", BigInteger, nullable=False),
    Column("num_flips", BigInteger, nullable=False),
    # Of the last visit.
    Column("last_tokens", Integer, nullable=False, server_default=text("0")),
    Column("last_flips", Integer, nullable=False, server_default=text("0")),
    Column("last_gains", Integer, nullable=False, server_default=text("0")),
)

# Which events the samples hold already, and of which attempt they are.
sample_progress = Table(
    "sample_progress",
    metadata,
    Column("run", String(64), ForeignKey("runs.run"), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("1")),
)

# Estimates after the first `seq` events of a run, in the order of the steps that they are of.
forgetting_points = Table(
    "forgetting_points",
    metadata,
    Column("run", String(64), ForeignKey("runs.run"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    # Tells the run from others of its name, as text.
    Column("incarnation", String(64), nullable=False),
    Column("step", BigInteger, nullable=False),
    # The run's: a rewind to before it takes the estimates back.
    Column("next_step", BigInteger, nullable=False),
    Column("injection_ratio", Double, nullable=False),
    Column("achieved_ratio", Double, nullable=True),
    Column("estimates", LargeBinary, nullable=False),
)

# One row: which replica of a cluster owns the runs.
service_lease = Table(
    "service_lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", String(64), nullable=False),
    Column("address", String(255), nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("duration_s", Double, nullable=False),
)

worst_samples = Index("worst_samples", samples.c.run, samples.c.excess_nats)

one_plan_a_step = Index(
    "one_plan_a_step",
    events.c.run,
    events.c.step,
    events.c.attempt,
    unique=True,
    sqlite_where=events.c.kind == "planned",
    postgresql_where=events.c.kind == "planned",
)

COMMON_KINDS: Final = ("planned", "reported", "trained")
"""Kinds of events that every step brings."""

IS_RARE: Final = text(f"events.kind NOT IN {COMMON_KINDS}")
"""Holds for events of all other kinds; a query that says it literally is answered from the index `rare_events`."""

_IS_RARE_ROW: Final = text(f"kind NOT IN {COMMON_KINDS}")

rare_events = Index(
    "rare_events",
    events.c.run,
    events.c.kind,
    events.c.seq,
    sqlite_where=_IS_RARE_ROW,
    postgresql_where=_IS_RARE_ROW,
)
