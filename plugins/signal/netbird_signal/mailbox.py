"""The messages that wait for one receiver: bounded in number and bytes, and shared fairly by their senders.

A receiver that reads slowly must not cost others anything, and a sender that floods it must not keep out others. So the
messages wait in lanes, one for each sender at each source address. Lanes take turns. In a full mailbox, a message is
dropped from the source that occupies the most, and there from the sender that occupies the most: a stranger who
registers many keys still has one source.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Final, NamedTuple

from netbird_wire.signalexchange_pb2 import EncryptedMessage

BYTES: Final = 512 << 10
"""Maximum size of the messages in a mailbox."""
MESSAGES: Final = 1024
"""Maximum number of messages in a mailbox. A restarted peer of a large network gets an offer of each other peer."""
LEAST_COST: Final = BYTES // MESSAGES
"""Bytes that a small message counts for, so that one bound limits both number and bytes."""
DISPLACED: Final = 4
"""Maximum number of messages that one message may displace; a message that needs more room is dropped. Agents' messages
are small and displace one."""


class Lane(NamedTuple):
    """A sender at a source address, by which messages share a mailbox. `sender` is "" for all those together that are
    not registered from there: anybody can name any sender."""

    source: str
    sender: str


class Mailbox:
    """The messages for one receiver, in order for each sender.

    Attributes:
        cost: bytes of the messages in it, small ones counted as `LEAST_COST`.
    """

    __slots__ = ("_lanes", "_shares", "_sources", "cost")

    def __init__(self) -> None:
        self.cost = 0
        self._lanes: OrderedDict[Lane, deque[tuple[EncryptedMessage, int]]] = OrderedDict()
        self._sources: Counter[str] = Counter()
        self._shares: dict[str, Counter[Lane]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def put(self, lane: Lane, message: EncryptedMessage, size: int, *, limit: int = BYTES) -> int:
        """Add a message of `size` bytes. Returns the number of messages that were dropped, this one or others.

        Args:
            limit: bound of `cost`; a mailbox that is above it already does not grow.
        """
        cost = max(size, LEAST_COST)
        limit = max(limit, self.cost)
        dropped = 0
        while self.cost + cost > limit:
            heaviest = self._heaviest(lane, cost) if dropped < DISPLACED else None
            if heaviest is None:
                return dropped + 1
            self._drop_newest(heaviest)
            dropped += 1
        self._lanes.setdefault(lane, deque()).append((message, cost))
        self._account(lane, cost)
        return dropped

    def take(self) -> EncryptedMessage | None:
        """Take the next message of the lane whose turn it is; None if the mailbox is empty."""
        if not self._lanes:
            return None
        lane, queue = self._lanes.popitem(last=False)
        message, cost = queue.popleft()
        if queue:
            self._lanes[lane] = queue
        self._account(lane, -cost)
        return message

    def _heaviest(self, lane: Lane, cost: int) -> Lane | None:
        """The lane that gives way to a message of `lane`; None if with it `lane` would itself occupy the most."""
        source = max(self._sources, key=self._sources.__getitem__, default=lane.source)
        if source != lane.source and self._sources[source] > self._sources[lane.source] + cost:
            shares = self._shares[source]
            return max(shares, key=shares.__getitem__)
        shares = self._shares.get(lane.source, Counter())
        heaviest = max(shares, key=shares.__getitem__, default=lane)
        return heaviest if shares[heaviest] > shares[lane] + cost else None

    def _drop_newest(self, lane: Lane) -> None:
        queue = self._lanes[lane]
        _, cost = queue.pop()
        if not queue:
            del self._lanes[lane]
        self._account(lane, -cost)

    def _account(self, lane: Lane, cost: int) -> None:
        self.cost += cost
        shares = self._shares.setdefault(lane.source, Counter())
        shares[lane] += cost
        self._sources[lane.source] += cost
        if not shares[lane]:
            del shares[lane]
        if not shares:
            del self._shares[lane.source], self._sources[lane.source]
