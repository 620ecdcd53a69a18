"""A bounded queue that many flows share fairly, for what waits until a socket is writable."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

QUANTUM_BYTES: Final = 4096
"""Bytes that a flow sends in its turn; its last item may exceed them."""
ITEM_OVERHEAD_BYTES: Final = 64
"""Memory that an item costs beyond its content, counted with it, so that tiny items are bounded too."""

Flow = TypeVar("Flow", bound=Hashable)


class FairQueue(Generic[Flow]):
    """Items by flow, in order within each flow, taken in turns. Never blocks: what does not fit is dropped.

    A flow may hold as much as is free. So a flow alone gets half of the queue, n flows get 1/(n+1) each, and a flow
    that is new always finds room beside those that flood.
    """

    __slots__ = ("_bytes", "_flows", "_max", "_turns")

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._bytes = 0
        self._flows: dict[Flow, tuple[deque[bytes], list[int]]] = {}
        self._turns: deque[Flow] = deque()

    def __len__(self) -> int:
        """Bytes in the queue, with each item's overhead."""
        return self._bytes

    def put(self, flow: Flow, item: bytes) -> bool:
        """Queue an item; False if it was dropped, because its flow has its share."""
        cost = len(item) + ITEM_OVERHEAD_BYTES
        held = self._flows.get(flow)
        if (held[1][0] if held is not None else 0) + cost > self._max - self._bytes:
            return False
        if held is None:
            held = self._flows[flow] = (deque(), [0])
            self._turns.append(flow)
        held[0].append(item)
        held[1][0] += cost
        self._bytes += cost
        return True

    def take(self, budget_bytes: int) -> list[bytes]:
        """Remove and return items in turns of QUANTUM_BYTES a flow, until their content reaches the budget."""
        items: list[bytes] = []
        taken = 0
        while self._turns and taken < budget_bytes:
            flow = self._turns.popleft()
            queue, held = self._flows[flow]
            turn = 0
            while queue and turn < QUANTUM_BYTES and taken < budget_bytes:
                item = queue.popleft()
                items.append(item)
                turn += len(item) or 1
                taken += len(item) or 1
                held[0] -= len(item) + ITEM_OVERHEAD_BYTES
                self._bytes -= len(item) + ITEM_OVERHEAD_BYTES
            if queue:
                self._turns.append(flow)
            else:
                del self._flows[flow]
        return items

    def clear(self) -> int:
        """Drop all; return the number of items."""
        count = sum(len(queue) for queue, _ in self._flows.values())
        self._flows.clear()
        self._turns.clear()
        self._bytes = 0
        return count
