"""The timer of offers: when a link that lacks a path, or lacks the better one, asks its peer again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

Status = Literal["connected", "partial", "disconnected"]

FIRST_INTERVAL: Final = 3.0
"""Seconds between the first offer and the second; each further interval is twice as long."""
EVENT_INTERVAL: Final = 0.8
"""Seconds between an event, such as a lost path, and the next offer."""
LONGEST_INTERVAL: Final = (30.0, 45.0)
"""Bounds in seconds of the longest interval. Each link draws its own, so that links do not tick together."""
SPREAD: Final = (0.9, 1.1)
PARTIAL_OFFERS: Final = 3
PARTIAL_INTERVAL: Final = 3600.0
"""Seconds between the offers of a partial link after the first three: the better path may never be possible."""
HOPEFUL_INTERVAL: Final = 30.0
"""The same for a link that had the better path before, which is likely to be possible again. It doubles each time."""


class Guard:
    """Decides when a link sends offers. `at` is the time of the next tick.

    Args:
        pick: returns a number between two bounds.
    """

    def __init__(self, now: float, pick: Callable[[float, float], float]) -> None:
        self._pick = pick
        self._longest = pick(*LONGEST_INTERVAL)
        self.at = now
        self._interval = FIRST_INTERVAL
        self._partial_offers = 0
        self._partial_at = now
        self._hopeful_interval = HOPEFUL_INTERVAL

    def begin(self, now: float) -> None:
        """Start over with a tick at once."""
        self.at, self._interval = now, FIRST_INTERVAL
        self._forget_offers()

    def hasten(self, now: float) -> None:
        """An event made an offer worth while: tick soon. Events in quick succession do not delay each other's tick."""
        self.at = min(self.at, now + EVENT_INTERVAL * self._pick(*SPREAD))
        self._interval = 2 * EVENT_INTERVAL
        self._forget_offers()

    def _forget_offers(self) -> None:
        self._partial_offers, self._hopeful_interval = 0, HOPEFUL_INTERVAL

    def rest(self) -> None:
        """Stop ticking until `begin` or `hasten`."""
        self.at = math.inf

    def tick(self, status: Status, now: float, *, hopeful: bool = False) -> bool:
        """Set the time of the next tick; True if the link sends an offer now. `hopeful`: it had the better path."""
        interval, self._interval = self._interval, min(2 * self._interval, self._longest)
        self.at = now + interval * self._pick(*SPREAD)
        if status == "connected":
            return False
        if status == "disconnected":
            return True
        # The ticks go on meanwhile, because the status can fall to `disconnected` without an event.
        if self._partial_offers >= PARTIAL_OFFERS and now < self._partial_at:
            return False
        self._partial_offers += 1
        interval = PARTIAL_INTERVAL
        if hopeful and self._partial_offers >= PARTIAL_OFFERS:
            interval = self._hopeful_interval
            self._hopeful_interval = min(2 * interval, PARTIAL_INTERVAL)
        self._partial_at = now + interval * self._pick(*SPREAD)
        return True
