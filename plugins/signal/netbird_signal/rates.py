"""Limits on how often something may happen. Time is an argument, in seconds, monotonic."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from netbird_host import buckets as host

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` events at once, and `per_second` events each second after that."""

    per_second: float
    burst: float


class Bucket(host.Bucket):
    """The tokens that are left of one rate."""

    __slots__ = ()

    def __init__(self, rate: Rate, now: float) -> None:
        super().__init__(rate.per_second, rate.burst, now)

    def take(self, now: float) -> bool:
        """Take one token. False if none is left; then nothing is taken."""
        return self.spend(1, now)


class LatestTable(Generic[V]):
    """Values that are made when they are first needed; over the bound, the least recently used is forgotten."""

    def __init__(self, most: int, make: Callable[[], V]) -> None:
        self._most = most
        self._make = make
        self._values: OrderedDict[str, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: str) -> V:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
            return value
        value = self._values[key] = self._make()
        if len(self._values) > self._most:
            self._values.popitem(last=False)
        return value
