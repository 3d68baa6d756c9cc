"""The first schema: runs, their events and snapshots, and what was measured of each sample."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("run", sa.String(64), primary_key=True),
        sa.Column("corpus", sa.String(64), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("owner_epoch", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("run", sa.String(64), sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("policy_version", sa.BigInteger, nullable=True),
        sa.Column("rehearsed_before", sa.BigInteger, nullable=True),
        sa.Column("rank", sa.Integer, nullable=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    planned = sa.text("kind = 'planned'")
    op.create_index(
        "one_plan_a_step",
        "events",
        ["run", "step", "attempt"],
        unique=True,
        sqlite_where=planned,
        postgresql_where=planned,
    )
    op.create_table(
        "snapshots",
        sa.Column("run", sa.String(64), sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("next_step", sa.BigInteger, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "samples",
        sa.Column("run", sa.String(64), sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("sample_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("stratum", sa.Integer, nullable=False),
        sa.Column("num_visits", sa.Integer, nullable=False),
        sa.Column("first_step", sa.BigInteger, nullable=False),
        sa.Column("last_step", sa.BigInteger, nullable=False),
        sa.Column("base_loss_nats", sa.Double, nullable=False),
        sa.Column("loss_nats", sa.Double, nullable=False),
        sa.Column("excess_nats", sa.Double, nullable=False),
        sa.Column("num_tokens", sa.BigInteger, nullable=False),
        sa.Column("num_flips", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "sample_progress",
        sa.Column("run", sa.String(64), sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )
    op.create_index("worst_samples", "samples", ["run", "excess_nats"])


def downgrade() -> None:
    for table in ("sample_progress", "samples", "snapshots", "events", "runs"):
        op.drop_table(table)
