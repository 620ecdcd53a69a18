"""Counts connections, so that neither one address nor clients without a token use up a relay."""

from __future__ import annotations

from collections import Counter

from netbird_relay.limits import Allowances, Limits

NEW_AT_ONCE, NEW_A_SECOND = 2.0, 0.125
"""New connections of one source at once and a second, as multiples of the connections that it may have. A handshake of
TLS costs more than anything else that a client without a token can ask for."""


class Admission:
    """Open connections by source, and those of them that have not authenticated yet."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        per_address = limits.connections_per_address
        self._rates = Allowances(per_address * NEW_A_SECOND, per_address * NEW_AT_ONCE)
        self.open = 0
        self.waiting = 0

    def enter(self, group: str, now: float, *, is_proxy: bool = False) -> str:
        """Count a new connection. Returns "" or, if it must be closed, the limit that it would exceed.

        A trusted proxy's connection counts for the proxy, without the limits of an address, until `move`.
        """
        if self.open >= self._limits.connections:
            return "connections"
        if self.waiting >= self._limits.unauthenticated:
            return "unauthenticated"
        if not is_proxy and (refused := self._judge(group, now)):
            return refused
        self._count(group)
        return ""

    def move(self, group: str, client: str, now: float) -> str:
        """Count a connection that has not authenticated for its client instead of the proxy. Returns as `enter`; a
        connection that must be closed counts for the proxy until it is gone."""
        if refused := self._judge(client, now):
            return refused
        self.leave(group, authenticated=False)
        self._count(client)
        return ""

    def _judge(self, group: str, now: float) -> str:
        limits = self._limits
        if not self._rates.spend(group, now):
            return "connection_rate"
        if self._open.get(group, 0) >= limits.connections_per_address:
            return "connections_per_address"
        if self._waiting.get(group, 0) >= limits.unauthenticated_per_address:
            return "unauthenticated_per_address"
        return ""

    def _count(self, group: str) -> None:
        self.open += 1
        self.waiting += 1
        self._open[group] += 1
        self._waiting[group] += 1

    def authenticated(self, group: str) -> None:
        self.waiting -= 1
        _less(self._waiting, group)

    def leave(self, group: str, *, authenticated: bool) -> None:
        if not authenticated:
            self.authenticated(group)
        self.open -= 1
        _less(self._open, group)


def _less(counter: Counter[str], group: str) -> None:
    counter[group] -= 1
    if counter[group] <= 0:
        del counter[group]
