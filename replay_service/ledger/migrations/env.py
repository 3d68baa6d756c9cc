"""Alembic's entry: it migrates over the connection that `open_database` hands to it."""

from alembic import context

from replay_service.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
