"""Deadlines of many parts in one heap, so that a single timer of the loop serves all of them."""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

K = TypeVar("K", bound=bytes)


class Timers(Generic[K]):
    """The next deadline of each key. A deadline in the heap that does not count any more is skipped when it comes."""

    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._heap: list[tuple[float, K]] = []

    def set(self, key: K, at: float) -> None:
        """Replace the deadline of a key; infinity removes it."""
        if at == math.inf:
            self._at.pop(key, None)
        elif self._at.get(key) != at:
            self._at[key] = at
            heapq.heappush(self._heap, (at, key))
            if len(self._heap) > 64 + 4 * len(self._at):  # more of the heap is stale than current
                self._heap = [(each, owner) for owner, each in self._at.items()]
                heapq.heapify(self._heap)

    @property
    def next(self) -> float:
        """The first deadline; infinity without one."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def due(self, now: float) -> list[K]:
        """Take the keys whose deadline has come."""
        keys = []
        while self.next <= now:
            key = heapq.heappop(self._heap)[1]
            del self._at[key]
            keys.append(key)
        return keys
