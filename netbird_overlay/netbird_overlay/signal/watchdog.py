"""Finds out that a signal server no longer delivers, although its connection looks alive."""

from __future__ import annotations

from enum import Enum
from typing import Final

SILENCE: Final = 30.0
"""Time in seconds without a message after which a heartbeat is sent to oneself, as NetBird's agents do."""
PATIENCE: Final = 10.0
"""Time in seconds that the heartbeat, or any other message, may take to arrive; then the stream is given up."""


class Verdict(Enum):
    """The state of the stream, and what to do about it."""

    ALIVE = "alive"
    PROBE = "probe"
    """Send a heartbeat now. Returned once for each silence."""
    DEAD = "dead"


class Watchdog:
    """The clock of one stream. Time is an argument, in seconds, monotonic.

    Attributes:
        deadline: time of the next call of `check`.
    """

    def __init__(self, now: float, *, silence: float = SILENCE, patience: float = PATIENCE) -> None:
        self._silence = silence
        self._patience = patience
        self._probed = False
        self.deadline = now + silence

    def heard(self, now: float) -> None:
        """A message arrived on the stream."""
        self._probed = False
        self.deadline = now + self._silence

    def check(self, now: float) -> Verdict:
        if now < self.deadline:
            return Verdict.ALIVE
        if self._probed:
            return Verdict.DEAD
        self._probed = True
        self.deadline = now + self._patience
        return Verdict.PROBE
