"""A bounded queue that accounts share; only an account that fills it loses items."""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Share(Generic[T]):
    items: deque[tuple[T, int]] = field(default_factory=deque)
    bytes: int = 0


class FairQueue(Generic[T]):
    """A queue with a maximum number of items and of bytes, in first-in-first-out order for each account.

    An account may use all free room. In a full queue, an account with less than an equal share gets room from the
    account with the most bytes, which loses its newest items.
    """

    def __init__(self, *, items: int, bytes: int) -> None:  # noqa: A002 - the unit of the limit
        self._most_items = items
        self._most_bytes = bytes
        self._shares: dict[Hashable, _Share[T]] = {}
        self._items = 0
        self._bytes = 0
        self.lost = 0
        """Number of items that accounts lost to make room for others."""

    def __len__(self) -> int:
        return self._items

    def put(self, account: Hashable, items: Sequence[tuple[T, int]]) -> bool:
        """Adds all of an account's items, each with its size in bytes; False if they do not fit, then it adds none."""
        number, size = len(items), sum(bytes_ for _, bytes_ in items)
        share = self._shares.get(account)
        accounts = len(self._shares) + (share is None)
        queued_items, queued_bytes = (len(share.items), share.bytes) if share is not None else (0, 0)
        if not self._fits(number, size):
            within = queued_items + number <= self._most_items // accounts
            if not within or queued_bytes + size > self._most_bytes // accounts:
                return False
            while not self._fits(number, size):
                self._take_from_the_largest()
        share = self._shares.setdefault(account, _Share())
        share.items.extend(items)
        share.bytes += size
        self._items += number
        self._bytes += size
        return True

    def get(self, most: int) -> list[tuple[Hashable, T, int]]:
        """Removes at most `most` items, distributed equally among the accounts that have items."""
        batch: list[tuple[Hashable, T, int]] = []
        while self._shares and len(batch) < most:
            part = max(1, (most - len(batch)) // len(self._shares))
            for account in list(self._shares):
                for _ in range(min(part, len(self._shares[account].items), most - len(batch))):
                    batch.append((account, *self._shares[account].items.popleft()))
                    self._removed(account, batch[-1][2])
            self._forget_empty()
        return batch

    def put_back(self, batch: Sequence[tuple[Hashable, T, int]]) -> None:
        """Returns a batch of `get` to the front of the queue, even beyond its limits."""
        for account, item, size in reversed(batch):
            share = self._shares.setdefault(account, _Share())
            share.items.appendleft((item, size))
            share.bytes += size
            self._items += 1
            self._bytes += size

    def _fits(self, number: int, size: int) -> bool:
        return self._items + number <= self._most_items and self._bytes + size <= self._most_bytes

    def _take_from_the_largest(self) -> None:
        account = max(self._shares, key=lambda name: (self._shares[name].bytes, len(self._shares[name].items)))
        _, size = self._shares[account].items.pop()
        self._removed(account, size)
        self.lost += 1
        self._forget_empty()

    def _removed(self, account: Hashable, size: int) -> None:
        self._shares[account].bytes -= size
        self._items -= 1
        self._bytes -= size

    def _forget_empty(self) -> None:
        for account in [name for name, share in self._shares.items() if not share.items]:
            del self._shares[account]
