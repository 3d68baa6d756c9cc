"""The third schema: the list of runs tells their states."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("runs", sa.Column("trained_at", sa.BigInteger, nullable=True))
    op.add_column("runs", sa.Column("corpus_fingerprint", sa.String(64), nullable=True))
    op.add_column("runs", sa.Column("job_end", sa.BigInteger, nullable=False, server_default=sa.text("-1")))
    _fill_in()


def _fill_in() -> None:
    """The corpora that runs began on, as their first events tell it."""
    connection = op.get_bind()
    events = sa.table("events", *map(sa.column, ("run", "seq", "payload")))
    runs = sa.table("runs", sa.column("run"), sa.column("corpus_fingerprint"))
    for run, payload in connection.execute(sa.select(events.c.run, events.c.payload).where(events.c.seq == 0)).all():
        fingerprint = json.loads(payload).get("corpus_fingerprint")
        connection.execute(sa.update(runs).where(runs.c.run == run).values(corpus_fingerprint=fingerprint))


def downgrade() -> None:
    for name in ("job_end", "corpus_fingerprint", "trained_at"):
        op.drop_column("runs", name)
