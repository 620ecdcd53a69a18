"""Adds the expiry of peers' logins, further DNS labels of peers, and which proxies answer DNS queries."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_FLAGS = ("login_expiration_enabled", "login_expired", "serves_dns")


def upgrade() -> None:
    with op.batch_alter_table("peers") as batch_op:
        for name in _FLAGS:
            batch_op.add_column(sa.Column(name, sa.Boolean(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("extra_dns_labels", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    with op.batch_alter_table("peers") as batch_op:
        for name in (*_FLAGS, "extra_dns_labels"):
            batch_op.drop_column(name)
