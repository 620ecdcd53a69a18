"""The messages that wait to be sent: bounded by peer and in all, in order for each peer, in turn between peers.

The outbox has no clock: time is an argument, in seconds, monotonic.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

from netbird_overlay.signal.messages import Message
from netbird_wire.signalexchange_pb2 import EncryptedMessage

MESSAGES_OF_A_PEER: Final = 32
"""Maximum number of messages that wait for one peer; beyond it the oldest is dropped. An offer and the candidates of a
machine with many networks are about 20."""
MESSAGES: Final = 8192
"""Maximum number of messages that wait; beyond it the peer's own oldest is dropped, or the new one if it has none."""
LIFETIME: Final = 45.0
"""Maximum time in seconds that a message waits; then it is dropped. By then the guard of the peer has sent a new offer,
and the old one would only restart the negotiation."""


@dataclass(slots=True, eq=False)
class Entry:
    """One message on its way to a peer. `sealed` is kept for the next attempt."""

    key: bytes
    message: Message
    since: float
    attempts: int = 0
    sealed: EncryptedMessage | None = None


class Outbox:
    """The queues of all peers.

    Attributes:
        counts: `dropped` (over a bound) and `expired` messages.
    """

    def __init__(
        self, *, messages_of_a_peer: int = MESSAGES_OF_A_PEER, messages: int = MESSAGES, lifetime: float = LIFETIME
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._of_a_peer = messages_of_a_peer
        self._most = messages
        self._lifetime = lifetime
        self._queues: dict[bytes, deque[Entry]] = {}
        self._turns: deque[bytes] = deque()  # peers that have a message and none in flight
        self._in_flight: set[bytes] = set()
        self._waiting = 0

    def __len__(self) -> int:
        """Number of messages that wait; those in flight are not counted."""
        return self._waiting

    def put(self, key: bytes, message: Message, now: float) -> None:
        """Add a message. Never raises: over a bound, a message of this peer is dropped and counted."""
        queue = self._queues.get(key)
        if queue and (len(queue) >= self._of_a_peer or self._waiting >= self._most):
            queue.popleft()
            self._waiting -= 1
            self.counts["dropped"] += 1
        elif self._waiting >= self._most:
            self.counts["dropped"] += 1
            return
        self._append(key, Entry(key, message, now))

    def take(self, now: float) -> Entry | None:
        """Take the next message of the peer whose turn it is; None if no peer has one.

        The peer gets no further turn until `finish` or `put_back`, so that its messages keep their order.
        """
        while self._turns:
            key = self._turns.popleft()
            queue = self._queues[key]
            while queue:
                entry = queue.popleft()
                self._waiting -= 1
                if now - entry.since < self._lifetime:
                    self._in_flight.add(key)
                    return entry
                self.counts["expired"] += 1
            del self._queues[key]
        return None

    def finish(self, entry: Entry) -> None:
        """The message was sent or given up: the peer's next one may follow."""
        self._in_flight.discard(entry.key)
        self._next_turn(entry.key)

    def put_back(self, entry: Entry) -> None:
        """The message could not be sent now: it waits again, before all others of its peer."""
        self._in_flight.discard(entry.key)
        self._queues.setdefault(entry.key, deque()).appendleft(entry)
        self._waiting += 1
        self._next_turn(entry.key)

    def _append(self, key: bytes, entry: Entry) -> None:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append(entry)
        self._waiting += 1
        if len(queue) == 1 and key not in self._in_flight:
            self._turns.append(key)

    def _next_turn(self, key: bytes) -> None:
        queue = self._queues.get(key)
        if queue:
            self._turns.append(key)
        elif queue is not None:
            del self._queues[key]
