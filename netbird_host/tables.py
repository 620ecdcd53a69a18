"""Bounded tables: each keeps at most `limit` entries, whatever clients ask for.

The table follows from what an entry costs to lose:

- `BoundedTable`, where a value can be worked out again in microseconds: it empties itself when it is full.
- `LatestTable`, where a lost entry costs a signature check, a call to management, or a count: it drops the entry that
  was kept longest ago. Lifetimes are the caller's, because they depend on more than time.
- `IdentityCache`, where the key is an object that the same caller presents again, and hashing it would cost more than
  the look-up saves.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedTable(dict[K, V]):
    """A dictionary that empties itself when it is full.

    A client that fills it with made-up keys costs the others one computation each, and nothing that lasts. Evicting
    single entries would make each look-up dearer than the computation that it saves.
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


class LatestTable(OrderedDict[K, V]):
    """A dictionary of the entries that were kept last, oldest first.

    Reading an entry does not make it younger, so that a look-up costs what it costs in a dictionary.
    """

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def keep(self, key: K, value: V) -> tuple[K, V] | None:
        """Store an entry as the youngest one. Returns the entry that was dropped for it, or None."""
        self[key] = value
        self.move_to_end(key)
        return self.popitem(last=False) if len(self) > self.limit else None


class IdentityCache(Generic[K, V]):
    """Values by object identity: equal objects have entries of their own.

    An entry keeps its object alive, so no other object can get the same `id`. It empties itself when it is full.
    """

    __slots__ = ("_entries",)

    def __init__(self, limit: int) -> None:
        self._entries: BoundedTable[int, tuple[K, V]] = BoundedTable(limit)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        entry = self._entries.get(id(key))
        return None if entry is None else entry[1]

    def keep(self, key: K, value: V) -> V:
        """Remember a value, and return it."""
        self._entries.keep(id(key), (key, value))
        return value
