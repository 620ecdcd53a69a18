"""Bounded tables: each keeps at most `limit` entries, whatever clients ask for.

The table follows from what an entry costs to lose:

- `BoundedTable`, where a value can be worked out again in microseconds: it empties itself when it is full, and is also
  bounded in bytes, because clients choose the length of what they send.
- `LatestTable`, where a lost entry costs a signature check, a call to management, or a count: it drops the entry that
  was kept longest ago. Lifetimes are the caller's, because they depend on more than time.
- `IdentityCache`, where the key is an object that the same caller presents again, and hashing it would cost more than
  the look-up saves.
"""

from __future__ import annotations

from collections import OrderedDict
from sys import getsizeof
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

MEAN_BYTES = 1024
"""Memory that a table may use for each entry of its limit, on the average."""
_SLOT_BYTES = 104  # of an entry in a dictionary that grows


class BoundedTable(dict[K, V]):
    """A dictionary that empties itself when it is full, in entries or in bytes.

    A client that fills it with made-up keys costs the others one computation each, and nothing that lasts. Evicting
    single entries would make each look-up dearer than the computation that it saves. An entry that would take more than
    a quarter of the bytes is not kept.

    Entries count as texts, and as lists and tuples of texts; of other objects only the object itself counts. Removing
    or replacing an entry gives no bytes back before the table is emptied.
    """

    __slots__ = ("_bytes", "limit", "max_bytes")

    def __init__(self, limit: int, *, max_bytes: int = 0) -> None:
        """Args:
        max_bytes: maximum memory of all entries; 0 for MEAN_BYTES for each entry of the limit.
        """
        super().__init__()
        self.limit = limit
        self.max_bytes = max_bytes or limit * MEAN_BYTES
        self._bytes = 0

    def keep(self, key: K, value: V) -> V:
        """Remember a value, and return it."""
        size = _SLOT_BYTES + _size(key) + _size(value)
        if size * 4 > self.max_bytes:
            return value
        if len(self) >= self.limit or self._bytes + size > self.max_bytes:
            self.clear()
        self._bytes += size
        self[key] = value
        return value

    def clear(self) -> None:
        super().clear()
        self._bytes = 0


def _size(content: object) -> int:
    size = getsizeof(content)
    if type(content) is tuple or type(content) is list:
        size += sum(map(_size, content))
    return size


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

    An entry keeps its object alive, so no other object can get the same `id`. It empties itself when it is full, as a
    `BoundedTable` does; its values follow from what management says, so they may be larger than what clients send.
    """

    __slots__ = ("_entries",)

    def __init__(self, limit: int) -> None:
        self._entries: BoundedTable[int, tuple[K, V]] = BoundedTable(limit, max_bytes=8 * limit * MEAN_BYTES)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        entry = self._entries.get(id(key))
        return None if entry is None else entry[1]

    def keep(self, key: K, value: V) -> V:
        """Remember a value, and return it."""
        self._entries.keep(id(key), (key, value))
        return value
