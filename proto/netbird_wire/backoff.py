"""Exponential back-off with jitter, so that clients do not return to a recovered server all at the same moment."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """The waits between the attempts of one operation that is repeated until it succeeds."""

    def __init__(
        self,
        first: float,
        longest: float,
        *,
        factor: float = 2.0,
        spread: tuple[float, float] = (0.5, 1.0),
        pick: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """
        Args:
            first: the interval after the first failure, in seconds.
            longest: bound of the interval.
            factor: growth of the interval from one failure to the next.
            spread: each wait lies between these two multiples of the interval.
            pick: chooses a wait between two bounds; a deterministic one makes tests exact.
        """
        self._first = first
        self._longest = longest
        self._factor = factor
        self._spread = spread
        self._pick = pick
        self._interval = first

    def reset(self) -> None:
        """An attempt succeeded: the next failure waits for the first interval."""
        self._interval = self._first

    def next_wait(self) -> float:
        """Seconds to wait before the next attempt; the interval grows with each call."""
        low, high = self._spread
        wait = self._pick(low * self._interval, high * self._interval)
        self._interval = min(self._interval * self._factor, self._longest)
        return wait
