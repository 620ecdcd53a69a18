"""Drops the hashes of users' passwords, as nothing verifies them."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("users") as batch_op:
        batch_op.drop_column("password_hash")


def downgrade() -> None:
    with op.batch_alter_table("users") as batch_op:
        batch_op.add_column(sa.Column("password_hash", sa.String(length=255), nullable=False, server_default=""))
    with op.batch_alter_table("users") as batch_op:
        batch_op.alter_column("password_hash", server_default=None)
