"""Sessions that management ended before they expire. It reports them as events, and those of the last day in every
snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable

from netbird_host.tables import LatestTable
from netbird_proxy.api.model import AccountId

KEPT = 86_400.0 + 600.0
"""Seconds that a revocation is kept: the longest lifetime of a token, and the difference of clocks."""
LIMIT = 65_536

_Key = tuple[AccountId, str | bytes]


class RevokedSessions:
    """Implements `Revocations`, with a bounded number of entries. When full, it forgets in the safe direction.

    Past the limit, the oldest entry is replaced by a floor for its account: all tokens issued before are refused, also
    those of other users, who must log in again. No revoked session is ever admitted for lack of space.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        limit: int = LIMIT,
        count: Callable[[str], object] = lambda _name: None,
    ) -> None:
        """Args:
        clock: wall-clock time, like the times in tokens.
        count: adds 1 to a counter of the process.
        """
        self.count = count
        self._clock = clock
        self._entries: LatestTable[_Key, tuple[float, float]] = LatestTable(limit)
        """(account, subject or token hash) → (not before, forgotten at), the oldest first."""
        self._floors: LatestTable[AccountId, tuple[float, float]] = LatestTable(limit)
        self._everybody = (0.0, 0.0)

    def __len__(self) -> int:
        return len(self._entries) + len(self._floors)

    def add(self, account: AccountId, *, subject: str = "", token_hash: bytes = b"", not_before: float) -> None:
        """Add a revocation. A repeated one changes nothing; of two for a subject, the later time applies.

        A revocation without subject and token applies to all sessions of the account.
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
            (owner, _), (before, _) = dropped
            self.count("revocations_overflowed")
            self._floor(owner, before, until)

    def revoked(self, account: AccountId, *, subject: str, token_hash: bytes, issued_at: float) -> bool:
        if not self._entries and not self._floors and issued_at >= self._everybody[0]:
            return False  # the usual case, without look-ups
        entries = self._entries
        by_token, by_subject = entries.get((account, token_hash)), entries.get((account, subject))
        floor, everybody = self._floors.get(account), self._everybody
        if by_token is None and by_subject is None and floor is None and issued_at >= everybody[0]:
            return False
        now = self._clock()
        if by_token is not None and now < by_token[1]:
            return True
        limits = (by_subject, floor, everybody)
        return any(entry is not None and issued_at < entry[0] and now < entry[1] for entry in limits)

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
