"""Limits by key, such as a client's address: on the rate of tries, and on how many run at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from netbird_host.tables import LatestTable


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
        self._buckets: LatestTable[str, tuple[float, float]] = LatestTable(keys)

    def __len__(self) -> int:
        return len(self._buckets)

    def is_empty(self, key: str) -> bool:
        return self._left(key) < 1

    def take(self, key: str) -> bool:
        """Take one try. False if none is left; then nothing is taken."""
        left = self._left(key)
        self._buckets.keep(key, (left - 1 if left >= 1 else left, self._clock()))
        return left >= 1

    def _left(self, key: str) -> float:
        left, at = self._buckets.get(key, (self._burst, self._clock()))
        return min(self._burst, left + (self._clock() - at) * self._per_second)


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
