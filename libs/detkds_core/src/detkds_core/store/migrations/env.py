"""Alembic's entry: migrate over the connection that `Store.migrate` holds the lock with."""

from alembic import context

from detkds_core.store.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
