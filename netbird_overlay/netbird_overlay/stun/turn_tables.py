"""Permissions and channels of an allocation, by the remote address, bounded in number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

RENEW_SECONDS: Final = 240.0
"""Age at which a permission (300 s) or a channel (600 s) is renewed, if it is in use (RFC 8656 §9, §12)."""
PERMISSION_SECONDS: Final = 300.0
CHANNEL_SECONDS: Final = 600.0
CHANNEL_REST: Final = 300.0
"""Time after a channel's end in which its number must not name another address (RFC 8656 §12)."""
REFUSED_SECONDS: Final = 30.0
"""Time for which a refused or unanswered request is not repeated."""
IDLE_SECONDS: Final = 30.0
"""Time without a datagram to an address after which its place may go to another."""

K = TypeVar("K")


@dataclass(slots=True)
class Grant:
    """A permission for an IP address, or the channel of an endpoint.

    Attributes:
        number: the channel's; 0 for a permission.
        asked: True while a request runs.
        until: the time at which the server forgets it; -inf if it never was granted.
        renew: the time from which its use asks for it again.
        used: the time of the last datagram of ours.
    """

    number: int = 0
    asked: bool = False
    until: float = -math.inf
    renew: float = -math.inf
    used: float = -math.inf

    def granted(self, now: float, seconds: float) -> None:
        self.asked, self.until, self.renew = False, now + seconds, now + RENEW_SECONDS

    def refused(self, now: float) -> None:
        self.asked, self.renew = False, now + REFUSED_SECONDS

    def wants_request(self, now: float) -> bool:
        return not self.asked and now >= self.renew


class Grants(Generic[K]):
    """The grants of one kind, at most `limit`. A full table gives the place of an idle one to a newcomer."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._grants: dict[K, Grant] = {}

    def __len__(self) -> int:
        return len(self._grants)

    def __iter__(self) -> Iterator[K]:
        return iter(self._grants)

    def get(self, key: K) -> Grant | None:
        return self._grants.get(key)

    def is_live(self, key: K, now: float) -> bool:
        grant = self._grants.get(key)
        return grant is not None and now < grant.until

    def use(self, key: K, now: float) -> Grant | None:
        """Return the grant of a key, a new one if it has none; None if all places are in use."""
        grant = self._grants.get(key)
        if grant is None:
            if len(self._grants) >= self._limit and not self._make_room(now):
                return None
            grant = self._grants[key] = Grant()
        grant.used = now
        return grant

    def _make_room(self, now: float) -> bool:
        """Forget the grant that has been idle for longest. A channel keeps its place until its number has rested."""
        idle = [
            key
            for key, each in self._grants.items()
            if not each.asked
            and now - each.used >= IDLE_SECONDS
            and not (each.number and now < each.until + CHANNEL_REST)
        ]
        if not idle:
            return False
        del self._grants[min(idle, key=lambda key: self._grants[key].used)]
        return True
