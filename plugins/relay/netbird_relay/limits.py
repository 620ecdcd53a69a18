"""Bounds of a relay: connections, memory, and rates."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from netbird_host.buckets import Bucket

CONTROL_IDS_A_SECOND, CONTROL_IDS_AT_ONCE = 5_000.0, 20_000.0
"""Rate and burst of subscriptions of one peer; beyond them, the relay reads more slowly from it."""
MAX_UNREAD_BYTES: Final = 1 << 20
"""Bytes that wait at a socket's transport when a peer is disconnected that asks but does not read."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one relay. Counters name each that was reached.

    Attributes:
        connections: maximum number of connections; further ones are closed at once.
        connections_per_address: of them, from one IPv4 address or one IPv6 /64.
        unauthenticated: of them, before a valid Auth.
        unauthenticated_per_address: of these, from one address.
        subscriptions_per_peer: maximum number of peers that one peer is subscribed to; further ones are ignored.
        subscriptions: of all peers together. A peer may hold as many as are free, so that one cannot use up all.
        queue_bytes: datagrams that wait for one receiver that reads too slowly; senders share it fairly, and beyond a
            sender's share the newest are dropped.
        all_queues_bytes: of all receivers together.
        bytes_per_second: of one peer's datagrams; beyond it, the relay reads more slowly from the peer. 0: no limit.
    """

    connections: int = 4096
    connections_per_address: int = 512
    unauthenticated: int = 512
    unauthenticated_per_address: int = 64
    subscriptions_per_peer: int = 10_000
    subscriptions: int = 1_000_000
    queue_bytes: int = 512 * 1024
    all_queues_bytes: int = 256 << 20
    bytes_per_second: int = 0


TAKEOVERS_A_SECOND, TAKEOVERS_AT_ONCE = 1.0, 60.0
"""Rate and burst at which one source may replace connections that come from other sources. A token names no peer, so
its bearer can take any id; peers that roam replace their own connection, each once."""
SOURCES: Final = 8192
"""Sources whose allowance is kept; beyond them the one that was silent longest is forgotten."""


class Allowances:
    """A bucket for each source, in a bounded table."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._by_source: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_source)

    def spend(self, source: str, now: float) -> bool:
        """Spend one of the source's; False if none is left."""
        bucket = self._by_source.get(source)
        if bucket is None:
            bucket = self._by_source[source] = Bucket(self._rate, self._burst, now)
            if len(self._by_source) > SOURCES:
                self._by_source.popitem(last=False)
        else:
            self._by_source.move_to_end(source)
        return bucket.spend(1.0, now)
