"""Alembic's entry for the log: runs on the connection it is given, inside the caller's transaction."""

from alembic import context

from netbird_management.store.models import LogRow

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=LogRow.metadata,
    version_table=context.config.attributes["version_table"],
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
