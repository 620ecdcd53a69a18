"""Events of an account, recorded with each change."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, select

from netbird_management.model.activity import SENTENCES, Activity
from netbird_management.model.ids import AccountId
from netbird_management.store.models import AccountRow, EventRow
from netbird_management.store.state import State

NEWEST: Final = 10_000
# Number of the latest changes of an account whose events are kept.
KEPT: Final = 100_000


@dataclass(frozen=True, slots=True)
class Event:
    """A recorded change. `number` counts the account's changes; events of the same change share a number."""

    id: str
    number: int
    timestamp: datetime
    activity: Activity
    initiator_id: str
    target_id: str
    details: dict[str, Any]

    @property
    def sentence(self) -> str:
        return SENTENCES[self.activity]


async def events_of(state: State, account_id: AccountId) -> list[Event]:
    """The newest events of an account, latest first."""
    query = select(EventRow).where(EventRow.account_id == account_id)
    query = query.order_by(EventRow.number.desc(), EventRow.id.desc()).limit(NEWEST)
    async with state.read() as session:
        rows = (await session.scalars(query)).all()
    return [
        Event(row.id, row.number, row.timestamp, Activity(row.activity), row.initiator_id, row.target_id, row.details)
        for row in rows
    ]


async def forget_old_events(state: State, kept: int = KEPT) -> None:
    """Deletes, in each account, the events of all but the latest `kept` changes."""
    async with state.read() as session:
        counted = (await session.execute(select(AccountRow.id, AccountRow.changes))).all()
    for account_id, changes in counted:
        if changes > kept:
            async with state.write() as session:
                old = EventRow.account_id == account_id, EventRow.number <= changes - kept
                await session.execute(delete(EventRow).where(*old))
