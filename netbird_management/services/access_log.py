"""The access log: what proxies report of exchanges, kept for some days."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.sqlite import insert

from netbird_management.clock import now
from netbird_management.ids import AccountId
from netbird_management.state import State
from netbird_management.store.models import AccessLogRow


@dataclass(frozen=True, slots=True)
class AccessLogEntry:
    """One exchange, or one connection of a stream. `user_groups` are the caller's group ids at that moment."""

    id: str
    account_id: AccountId
    service_id: str
    timestamp: datetime
    source_ip: str
    method: str
    host: str
    path: str
    duration_ms: int
    status_code: int
    bytes_upload: int
    bytes_download: int
    reason: str = ""
    user_id: str = ""
    auth_method: str = ""
    protocol: str = ""
    metadata: Mapping[str, str] | None = None
    user_groups: tuple[str, ...] = ()


async def add_access_log_entries(state: State, entries: Sequence[AccessLogEntry]) -> None:
    """Stores a batch in one transaction; an entry that is known already is left out, so a batch may be sent again.

    Entries of accounts that are not here make the whole batch fail: check them first.
    """
    if not entries:
        return
    rows = [
        {
            "id": entry.id,
            "account_id": entry.account_id,
            "service_id": entry.service_id,
            "timestamp": entry.timestamp,
            "source_ip": entry.source_ip,
            "method": entry.method[:64],
            "host": entry.host[:255],
            "path": entry.path[:4096],
            "duration_ms": entry.duration_ms,
            "status_code": entry.status_code,
            "reason": entry.reason,
            "user_id": entry.user_id,
            "auth_method": entry.auth_method,
            "bytes_upload": entry.bytes_upload,
            "bytes_download": entry.bytes_download,
            "protocol": entry.protocol,
            "details": dict(entry.metadata or {}),
            "user_groups": list(entry.user_groups),
        }
        for entry in entries
    ]
    async with state.write() as session:
        await session.execute(insert(AccessLogRow).on_conflict_do_nothing(), rows)


async def access_log_page(
    state: State, account_id: AccountId, *, page: int, page_size: int, filters: Mapping[str, Any]
) -> tuple[list[AccessLogEntry], int]:
    """One page, newest first, and how many entries there are. `filters` are exact values by column."""
    where = [AccessLogRow.account_id == account_id]
    where += [getattr(AccessLogRow, column) == value for column, value in filters.items()]
    query = select(AccessLogRow).where(*where).order_by(AccessLogRow.timestamp.desc(), AccessLogRow.id.desc())
    async with state.read() as session:
        total = await session.scalar(select(func.count()).select_from(AccessLogRow).where(*where)) or 0
        rows = (await session.scalars(query.offset((page - 1) * page_size).limit(page_size))).all()
    return [_entry(row) for row in rows], total


async def forget_old_entries(state: State, days: float) -> None:
    async with state.write() as session:
        await session.execute(delete(AccessLogRow).where(AccessLogRow.timestamp < now() - timedelta(days=days)))


def _entry(row: AccessLogRow) -> AccessLogEntry:
    return AccessLogEntry(
        id=row.id,
        account_id=AccountId(row.account_id),
        service_id=row.service_id,
        timestamp=row.timestamp,
        source_ip=row.source_ip,
        method=row.method,
        host=row.host,
        path=row.path,
        duration_ms=row.duration_ms,
        status_code=row.status_code,
        bytes_upload=row.bytes_upload,
        bytes_download=row.bytes_download,
        reason=row.reason,
        user_id=row.user_id,
        auth_method=row.auth_method,
        protocol=row.protocol,
        metadata=row.details,
        user_groups=tuple(row.user_groups),
    )
