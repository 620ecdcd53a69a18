"""Limits by key, such as a client's address: on the rate of tries, and on how many run at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from math import inf

from netbird_host.tables import LatestTable


class Bucket:
    """An allowance that refills with time. Time is an argument, in seconds, monotonic.

    Args:
        per_second: the amount that it regains each second.
        burst: the amount of a full one.
    """

    __slots__ = ("_at", "_burst", "_left", "_per_second")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._left, self._at = burst, now

    def spend(self, amount: float, now: float) -> bool:
        """Spend an amount if it is left; else False, and nothing is spent."""
        self._refill(now)
        if self._left < amount:
            return False
        self._left -= amount
        return True

    def overdraw(self, amount: float, now: float) -> float:
        """Spend an amount in any case; return the seconds to wait before the next, 0.0 for none."""
        self._refill(now)
        self._left -= amount
        return max(0.0, -self._left / self._per_second)

    def delay(self, amount: float, now: float) -> float:
        """Seconds until the amount can be spent: 0.0 if it is left, infinity if the bucket never refills."""
        self._refill(now)
        if self._left >= amount:
            return 0.0
        return (amount - self._left) / self._per_second if self._per_second else inf

    def missing(self, now: float) -> float:
        """The amount that is missing from a full bucket."""
        return max(self._burst - self._left - (now - self._at) * self._per_second, 0.0)

    def _refill(self, now: float) -> None:
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now


class Buckets:
    """A token bucket for each key.

    Args:
        clock: returns seconds, monotonic.
        burst: tries that a full bucket allows at once.
        per_second: tries that a bucket regains each second.
        keys: maximum number of buckets; beyond it the least recently used one is forgotten, which refills it.
    """

    def __init__(self, clock: Callable[[], float], *, burst: int, per_second: float, keys: int) -> None:
        self._clock = clock
        self._burst = float(burst)
        self._per_second = per_second
        self._buckets: LatestTable[Hashable, Bucket] = LatestTable(keys)

    def __len__(self) -> int:
        return len(self._buckets)

    def is_empty(self, key: Hashable) -> bool:
        return self.delay(key) > 0

    def delay(self, key: Hashable) -> float:
        """Seconds until a try is left; 0.0 if one is."""
        now = self._clock()
        return self._of(key, now).delay(1, now)

    def take(self, key: Hashable) -> bool:
        """Take one try. False if none is left; then nothing is taken."""
        now = self._clock()
        bucket = self._of(key, now)
        self._buckets.keep(key, bucket)
        return bucket.spend(1, now)

    def _of(self, key: Hashable, now: float) -> Bucket:
        return self._buckets.get(key) or Bucket(self._per_second, self._burst, now)


class Places:
    """A limit on how many operations of each key run at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._taken)

    @contextmanager
    def place(self, key: str, *, refusal: Callable[[], Exception]) -> Iterator[None]:
        """Occupy a place until the context is left. Raises the exception that `refusal` returns if none is free."""
        if self._taken[key] >= self._limit:
            raise refusal()
        self._taken[key] += 1
        try:
            yield
        finally:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]
