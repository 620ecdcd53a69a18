"""How often, and how many times at once, each of many callers may do something."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Buckets:
    """A bucket of tries for each key, filled again with time.

    Args:
        clock: seconds, monotonic.
        burst: tries that a full bucket has.
        per_second: tries that come back.
        keys: buckets that are kept; the one that has been quiet for longest is forgotten, and is then full again.
    """

    def __init__(self, clock: Callable[[], float], *, burst: int, per_second: float, keys: int) -> None:
        self._clock = clock
        self._burst = float(burst)
        self._per_second = per_second
        self._keys = keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def is_empty(self, key: str) -> bool:
        return self._left(key) < 1

    def take(self, key: str) -> bool:
        """Takes one try. False, and nothing taken, where none is left."""
        left = self._left(key)
        self._buckets[key] = (left - 1 if left >= 1 else left, self._clock())
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        return left >= 1

    def _left(self, key: str) -> float:
        left, at = self._buckets.get(key, (self._burst, self._clock()))
        return min(self._burst, left + (self._clock() - at) * self._per_second)


class Places:
    """So many things under way at once for each key."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._taken)

    @contextmanager
    def place(self, key: str, *, refusal: Callable[[], Exception]) -> Iterator[None]:
        """A place while the context lasts. Raises what `refusal` makes where none is left."""
        if self._taken[key] >= self._limit:
            raise refusal()
        self._taken[key] += 1
        try:
            yield
        finally:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]
