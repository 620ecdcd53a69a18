"""Adds the service of a revoked session."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("revocations") as batch_op:
        batch_op.add_column(sa.Column("service_id", sa.String(length=255), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("revocations") as batch_op:
        batch_op.drop_column("service_id")
