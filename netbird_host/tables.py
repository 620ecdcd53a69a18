"""Results that are remembered by keys which strangers choose."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedTable(dict[K, V]):
    """A dictionary that forgets everything when it is full, and begins anew.

    Whoever fills it with made-up keys costs others one more working out of theirs, and nothing that lasts. Evicting one
    entry at a time would cost each look-up more than what is remembered saves.
    """

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def keep(self, key: K, value: V) -> V:
        """Remember a value, and return it."""
        if len(self) >= self.limit:
            self.clear()
        self[key] = value
        return value
