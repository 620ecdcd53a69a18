"""The part of a machine's limits that belongs to this process, if several workers serve together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

__all__ = ("WHOLE", "Share")


@dataclass(frozen=True, slots=True)
class Share:
    """The share of one worker. An operator's limit applies to the machine, so that each worker gets an equal part.

    Attributes:
        number: this worker's number, from 1.
        of: the number of workers, `process.workers`; 1 for a proxy that is a single process.
    """

    number: int = 1
    of: int = 1

    def count(self, limit: int) -> int:
        """This worker's part of a limit on a number, rounded down, and at least 1."""
        return max(1, limit // self.of)

    def rate(self, limit: float) -> float:
        """This worker's part of a limit on a rate."""
        return limit / self.of

    def order(self, items: Sequence[T]) -> tuple[T, ...]:
        """All items, this worker's part of them first: workers that take the first free item rarely meet."""
        start = len(items) * (self.number - 1) // self.of
        return (*items[start:], *items[:start])


WHOLE = Share()
"""The share of a proxy that is a single process."""
