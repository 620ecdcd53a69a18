"""Events with the number of their change, setup keys, name servers and zones."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _text(name: str, length: int = 255) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=False)


def _account() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], ondelete="CASCADE")


def upgrade() -> None:
    with op.batch_alter_table("accounts") as batch_op:
        batch_op.add_column(sa.Column("changes", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "events",
        _text("id"),
        _text("account_id"),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("timestamp", sa.DateTime(), nullable=False),
        _text("activity", 64),
        _text("initiator_id"),
        _text("target_id"),
        sa.Column("details", sa.JSON(), nullable=False),
        _account(),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("events_of_account", "events", ["account_id", "number"])
    op.create_table(
        "setup_keys",
        _text("id"),
        _text("account_id"),
        _text("name"),
        _text("hashed_key"),
        _text("hint", 8),
        _text("kind", 16),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=True),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.Column("used_times", sa.BigInteger(), nullable=False),
        sa.Column("last_used", sa.DateTime(), nullable=True),
        sa.Column("auto_groups", sa.JSON(), nullable=False),
        sa.Column("usage_limit", sa.BigInteger(), nullable=False),
        sa.Column("ephemeral", sa.Boolean(), nullable=False),
        sa.Column("allow_extra_dns_labels", sa.Boolean(), nullable=False),
        _account(),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hashed_key"),
    )
    op.create_index("ix_setup_keys_account_id", "setup_keys", ["account_id"])
    op.create_table(
        "nameserver_groups",
        _text("id"),
        _text("account_id"),
        _text("name"),
        _text("description", 1024),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("primary", sa.Boolean(), nullable=False),
        sa.Column("nameservers", sa.JSON(), nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("domains", sa.JSON(), nullable=False),
        sa.Column("search_domains_enabled", sa.Boolean(), nullable=False),
        _account(),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("account_id", "name", name="one_nameserver_group_a_name"),
    )
    op.create_index("ix_nameserver_groups_account_id", "nameserver_groups", ["account_id"])
    op.create_table(
        "dns_zones",
        _text("id"),
        _text("account_id"),
        _text("name"),
        _text("domain"),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("enable_search_domain", sa.Boolean(), nullable=False),
        sa.Column("distribution_groups", sa.JSON(), nullable=False),
        sa.Column("records", sa.JSON(), nullable=False),
        _account(),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("account_id", "domain", name="one_zone_a_domain"),
    )
    op.create_index("ix_dns_zones_account_id", "dns_zones", ["account_id"])


def downgrade() -> None:
    for table in ("dns_zones", "nameserver_groups", "setup_keys", "events"):
        op.drop_table(table)
    with op.batch_alter_table("accounts") as batch_op:
        batch_op.drop_column("changes")
