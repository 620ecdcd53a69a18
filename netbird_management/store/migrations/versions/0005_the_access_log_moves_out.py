"""Drops the access log from the accounts' database; `_move_log` has already copied it to the log's database."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _text(name: str, length: int = 255) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=False)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def upgrade() -> None:
    op.drop_table("access_log_entries")


def downgrade() -> None:
    """Empty: what was logged stays where it is."""
    op.create_table(
        "access_log_entries",
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
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("access_log_of_account", "access_log_entries", ["account_id", "timestamp"])
    op.create_index("ix_access_log_entries_timestamp", "access_log_entries", ["timestamp"])
