"""The fourth schema: the latest damage of each sample, and points of the curves of forgetting."""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_OF_SAMPLES: Final = ("last_tokens", "last_flips", "last_gains")


def upgrade() -> None:
    _forget_samples()
    for name in _OF_SAMPLES:
        op.add_column("samples", sa.Column(name, sa.Integer, nullable=False, server_default=sa.text("0")))
    op.create_table("forgetting_points", *_of_points())


def _forget_samples() -> None:
    """They are derived from the journal, and are made again when somebody asks."""
    for table in ("samples", "sample_progress"):
        op.execute(sa.delete(sa.table(table)))


def _of_points() -> list[sa.Column[Any]]:
    return [
        sa.Column("run", sa.String(64), sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("incarnation", sa.String(64), nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("next_step", sa.BigInteger, nullable=False),
        sa.Column("injection_ratio", sa.Double, nullable=False),
        sa.Column("achieved_ratio", sa.Double, nullable=True),
        sa.Column("estimates", sa.LargeBinary, nullable=False),
    ]


def downgrade() -> None:
    op.drop_table("forgetting_points")
    _forget_samples()
    for name in reversed(_OF_SAMPLES):
        op.drop_column("samples", name)
