"""A timer for deadlines that move with each turn."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

MIN_SLEEP = 0.001
"""Shortest timer in seconds, so that a deadline in the past does not cause a busy loop."""


class Alarm:
    """Calls back once, no later than the earliest time that was set.

    An earlier time is kept: an extra call costs less than moving the timer in the loop's heap.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._timer: asyncio.Handle | None = None
        self._at = math.inf  # kept here, because uvloop's handle of a very short timer does not report it

    def set(self, seconds: float) -> None:
        """Be due in this time, a finite number of seconds, or before."""
        at = self._loop.time() + max(seconds, MIN_SLEEP)
        if self._timer is not None:
            if self._at <= at:
                return
            self._timer.cancel()
        self._at = at
        self._timer = self._loop.call_at(at, self._due)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        self._callback()
