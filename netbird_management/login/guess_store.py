"""Failed login attempts by source, stored across restarts."""

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import delete

from netbird_host.login_throttle import TRUSTED, Source
from netbird_host.sources import source_of
from netbird_management.model.clock import now
from netbird_management.model.ids import ServiceId
from netbird_management.store.models import GuessRow
from netbird_management.store.state import State

KEPT: Final = timedelta(seconds=TRUSTED)


async def load_source(state: State, service_id: ServiceId, address: str) -> Source:
    """The stored attempts of a source at a service; empty for a new source."""
    async with state.read() as session:
        row = await session.get(GuessRow, (service_id, source_of(address)))
    if row is None or row.updated_at < now() - KEPT:
        return Source()
    return Source(row.failures, _seconds(row.blocked_until) or 0.0, _seconds(row.right_at))


async def store_source(state: State, service_id: ServiceId, address: str, source: Source) -> None:
    """Stores the attempts of a source, and deletes rows that are older than `KEPT`."""
    async with state.write() as session:
        row = GuessRow(
            service_id=service_id,
            source=source_of(address),
            failures=source.failures,
            blocked_until=_moment(source.blocked_until),
            right_at=_moment(source.right_at),
            updated_at=now(),
        )
        await session.merge(row)
        await session.execute(delete(GuessRow).where(GuessRow.updated_at < now() - KEPT))


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _moment(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
