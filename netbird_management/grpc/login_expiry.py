"""The task that marks peers whose login has expired, at the moment at which it does."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Final

from netbird_management.model.admission import login_expires_at
from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId
from netbird_management.model.snapshot import AccountSnapshot, Change, Changes
from netbird_management.operations.peers import set_login_expired
from netbird_management.store.state import State

LONGEST_WAIT: Final = 3600.0
"""Maximum time, in seconds, between two looks at the clock, which may be set back or forward."""
RETRY_SECONDS: Final = 10.0
_log = logging.getLogger(__name__)


class LoginExpiry:
    """Knows the next expiry of each account. A change costs only what it touched, an expiry the account's peers."""

    def __init__(self, state: State, clock: Callable[[], datetime] = now) -> None:
        self._state = state
        self._clock = clock
        self._next: dict[AccountId, datetime] = {}

    async def run(self, changes: Changes) -> None:
        """Marks peers until it is cancelled."""
        for snapshot in self._state.snapshots.all():
            self._due_now(snapshot.account.id)
        while True:
            wait = await self._expire()
            try:
                async with asyncio.timeout(wait):
                    self._follow(await anext(changes))
            except TimeoutError:
                continue

    def _due_now(self, account_id: AccountId) -> None:
        self._next[account_id] = self._clock()

    def _follow(self, change: Change) -> None:
        account_id, after, touched = change.account_id, change.after, change.touched
        if after is None:
            self._next.pop(account_id, None)
        elif change.before is None or touched.account:
            self._due_now(account_id)
        else:
            peers = [peer for id_ in touched.peers if (peer := after.peers.get(id_)) is not None]
            for peer in peers:
                expires_at = login_expires_at(peer, after.account)
                if expires_at is not None and not peer.login_expired:
                    self._next[account_id] = min(expires_at, self._next.get(account_id, expires_at))

    async def _expire(self) -> float:
        """Marks the peers whose time has come. Returns the time until the next one, in seconds."""
        moment = self._clock()
        for account_id in [id_ for id_, due in self._next.items() if due <= moment]:
            try:
                # Not ended by the host's end between the commit and the snapshot that follows it.
                await self._state.to_the_end(set_login_expired(self._state, account_id, moment))
            except Exception:
                _log.exception("login_expiry.failed", extra={"account_id": account_id})
                return RETRY_SECONDS
            snapshot = self._state.snapshots.get(account_id)
            upcoming = None if snapshot is None else _earliest(snapshot, moment)
            if upcoming is None:
                self._next.pop(account_id, None)
            else:
                self._next[account_id] = upcoming
        if not self._next:
            return LONGEST_WAIT
        return max(0.0, min(LONGEST_WAIT, (min(self._next.values()) - self._clock()).total_seconds()))


def _earliest(snapshot: AccountSnapshot, moment: datetime) -> datetime | None:
    expiries = (login_expires_at(peer, snapshot.account) for peer in snapshot.peers.values())
    return min((expiry for expiry in expiries if expiry is not None and expiry > moment), default=None)
