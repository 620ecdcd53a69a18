"""Creates the access log in its own database."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _text(name: str, length: int = 255) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=False)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def upgrade() -> None:
    op.create_table(
        "access_log",
        _text("id"),
        _text("account_id"),
        _text("service_id"),
        sa.Column("timestamp", sa.DateTime(), nullable=False),
        _text("source_ip"),
        _text("method", 64),
        _text("host"),
        _text("path", 4096),
        _count("duration_ms"),
        _count("status_code"),
        _text("reason"),
        _text("user_id"),
        _text("auth_method"),
        _count("bytes_upload"),
        _count("bytes_download"),
        _text("protocol", 8),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("user_groups", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_access_log_of_account", "access_log", ["account_id", "timestamp"])
    op.create_index("ix_access_log_timestamp", "access_log", ["timestamp"])


def downgrade() -> None:
    op.drop_table("access_log")
