"""The tables of the ledger. Migrations make them: a change here comes with one, and a test compares the two."""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("corpus", String(64), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("owner_epoch", BigInteger, nullable=False),
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
)

# Which events the samples hold already.
sample_progress = Table(
    "sample_progress",
    metadata,
    Column("run", String(64), ForeignKey("runs.run"), primary_key=True),
    Column("seq", BigInteger, nullable=False),
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
