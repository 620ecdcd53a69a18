"""Limits on how often something may happen. Time is an argument, in seconds, monotonic."""

from __future__ import annotations

from dataclasses import dataclass

from netbird_host import buckets as host


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
