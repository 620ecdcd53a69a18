"""Sessions that are over before they expire, as management tells of them: as they happen, and the last day's anew in
every snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable

from netbird_host.tables import LatestTable
from netbird_proxy.api.model import AccountId

KEPT = 86_400.0 + 600.0
"""Seconds a revocation is remembered: as long as any token lives, and the clocks' difference."""
LIMIT = 65_536

_Key = tuple[AccountId, str | bytes]


class RevokedSessions:
    """Implements `steps.Revocations`. Bounded: what does not fit is forgotten towards refusing.

    Past the limit the oldest is replaced by a floor of its account: every token issued before it is refused, also of
    others, who then log in again. Nobody is let in because there was no room.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        limit: int = LIMIT,
        count: Callable[[str], object] = lambda _name: None,
    ) -> None:
        """Args:
        clock: the wall's, as tokens are stamped by it.
        count: adds one to a counter of the process.
        """
        self.count = count
        self._clock = clock
        self._entries: LatestTable[_Key, tuple[float, float]] = LatestTable(limit)
        """Subject or token hash → (not before, forgotten at), the oldest first."""
        self._floors: LatestTable[AccountId, tuple[float, float]] = LatestTable(limit)
        self._everybody = (0.0, 0.0)

    def __len__(self) -> int:
        return len(self._entries) + len(self._floors)

    def add(self, account: AccountId, *, subject: str = "", token_hash: bytes = b"", not_before: float) -> None:
        """Take one. Told again it changes nothing; of two about one subject the later counts.

        One that names neither subject nor token is about everybody in the account.
        """
        until = self._clock() + KEPT
        self._forget()
        if not subject and not token_hash:
            self._floor(account, not_before, until)
            return
        key: _Key = (account, token_hash or subject)
        earlier = self._entries.get(key, (not_before, until))
        dropped = self._entries.keep(key, (max(earlier[0], not_before), until))
        if dropped is not None:
            (of, _), (before, _) = dropped
            self.count("revocations_overflowed")
            self._floor(of, before, until)

    def revoked(self, account: AccountId, *, subject: str, token_hash: bytes, issued_at: float) -> bool:
        if not self._entries and not self._floors and issued_at >= self._everybody[0]:
            return False  # which is what nearly each exchange with a session asks to hear
        entries = self._entries
        by_token, by_subject = entries.get((account, token_hash)), entries.get((account, subject))
        floor, everybody = self._floors.get(account), self._everybody
        if by_token is None and by_subject is None and floor is None and issued_at >= everybody[0]:
            return False
        now = self._clock()
        if by_token is not None and now < by_token[1]:
            return True
        found = (by_subject, floor, everybody)
        return any(entry is not None and issued_at < entry[0] and now < entry[1] for entry in found)

    def _floor(self, account: AccountId, not_before: float, until: float) -> None:
        earlier = self._floors.get(account, (not_before, until))
        dropped = self._floors.keep(account, (max(earlier[0], not_before), until))
        if dropped is not None:
            _, (before, forgotten) = dropped
            self._everybody = (max(self._everybody[0], before), max(self._everybody[1], forgotten))

    def _forget(self) -> None:
        now = self._clock()
        for kept in (self._entries, self._floors):
            while kept and next(iter(kept.values()))[1] <= now:
                kept.popitem(last=False)
