"""Drops the uniqueness of unproved domains, adds times of proofs, and folds the addresses of clusters."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_ADDRESSES = (
    ("proxies", "cluster_address"),
    ("services", "proxy_cluster"),
    ("domains", "target_cluster"),
    ("peers", "proxy_cluster"),
)
_NAMES = {"services": "one_service_a_domain", "domains": "one_custom_domain_a_name"}
_UNNAMED = {"uq": "uq_%(table_name)s_%(column_0_name)s"}


def upgrade() -> None:
    for table in _NAMES:
        _unique(table, was=None, now=["account_id", "domain"])
    with op.batch_alter_table("services") as batch_op:
        batch_op.add_column(sa.Column("own_cluster", sa.Boolean(), nullable=False, server_default=sa.false()))
    moment = datetime.now(UTC).replace(tzinfo=None).isoformat(" ")
    with op.batch_alter_table("domains") as batch_op:
        batch_op.add_column(sa.Column("by_alias", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("created_at", sa.DateTime(), nullable=False, server_default=moment))
        batch_op.add_column(sa.Column("proved_at", sa.DateTime(), nullable=True))
        batch_op.add_column(sa.Column("asked_at", sa.DateTime(), nullable=True))
    with op.batch_alter_table("domains") as batch_op:
        batch_op.alter_column("created_at", server_default=None)
    connection = op.get_bind()
    connection.execute(sa.text("UPDATE domains SET by_alias = validated"))
    connection.execute(sa.text("UPDATE domains SET proved_at = created_at WHERE validated"))
    for table, column in _ADDRESSES:
        _fold(connection, table, column)
    connection.execute(
        sa.text(
            "UPDATE services SET own_cluster = :yes WHERE EXISTS (SELECT 1 FROM proxies "
            "WHERE proxies.cluster_address = services.proxy_cluster AND proxies.account_id = services.account_id)"
        ),
        {"yes": True},
    )


def downgrade() -> None:
    with op.batch_alter_table("domains") as batch_op:
        for column in ("by_alias", "created_at", "proved_at", "asked_at"):
            batch_op.drop_column(column)
    with op.batch_alter_table("services") as batch_op:
        batch_op.drop_column("own_cluster")
    for table in _NAMES:
        _unique(table, was=["account_id", "domain"], now=None)


def _unique(table: str, *, was: list[str] | None, now: list[str] | None) -> None:
    """Exchanges the constraint on `domain` alone, which has the database's own name, and ours on two columns."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    unnamed = f"uq_{table}_domain" if sqlite else f"{table}_domain_key"
    with op.batch_alter_table(table, naming_convention=_UNNAMED if sqlite else None) as batch_op:
        batch_op.drop_constraint(_NAMES[table] if was else unnamed, type_="unique")
        batch_op.create_unique_constraint(_NAMES[table] if now else unnamed, now or ["domain"])


def _fold(connection: sa.Connection, table: str, column: str) -> None:
    values = sa.table(table, sa.column(column))
    stored = values.c[column]
    for (address,) in connection.execute(sa.select(stored).where(stored.is_not(None)).distinct()).all():
        folded = address.strip().rstrip(".").lower()
        if folded != address:
            connection.execute(sa.update(values).where(stored == address).values({column: folded}))
