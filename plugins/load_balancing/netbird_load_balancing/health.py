"""Load and passive health of upstreams, by what the proxy's own tries show. No request is made to learn them."""

from __future__ import annotations

from weakref import WeakValueDictionary

from netbird_load_balancing.settings import Ejection
from netbird_proxy import (
    DialFailed,
    DialRefused,
    DialTimeout,
    DialUnreachable,
    ProxyError,
    RouteSpec,
    TlsFailed,
    Upstream,
)

_UNREACHED = (DialFailed, DialRefused, DialTimeout, DialUnreachable, TlsFailed)
"""Failures that count. No client can cause them by its request, so that no client can have an upstream ejected."""
_MOST_DOUBLINGS = 12


class UpstreamState:
    """The state of one upstream of a service.

    Attributes:
        pending: number of tries that have not ended.
        ejected_until: time of the monotonic clock until which it is ejected; 0.0 if it never was.
    """

    __slots__ = ("__weakref__", "_ejections", "_failures", "ejected_until", "pending")

    def __init__(self) -> None:
        self.pending = 0
        self.ejected_until = 0.0
        self._failures = 0
        self._ejections = 0

    def ended(self, error: ProxyError | None, rules: Ejection | None, now: float) -> bool:
        """Take the outcome of a try. Returns True if the upstream is ejected because of it.

        A complete answer clears all failures. Failures after the connection was made are neither good nor bad.
        """
        self.pending -= 1
        if error is None:
            self._failures = self._ejections = 0
            self.ejected_until = 0.0
        elif rules is not None and isinstance(error, _UNREACHED):
            self._failures += 1
            if self._failures >= rules.failures and self.ejected_until <= now:
                self.ejected_until = now + min(rules.seconds << self._ejections, rules.max_seconds)
                self._ejections = min(self._ejections + 1, _MOST_DOUBLINGS)
                return True
        return False


class UpstreamStates:
    """The states of all upstreams that routes in use lead to: an edited mapping finds the states of its upstreams."""

    def __init__(self) -> None:
        self._kept: WeakValueDictionary[tuple[str, str, str], UpstreamState] = WeakValueDictionary()

    def of(self, route: RouteSpec, upstream: Upstream) -> UpstreamState:
        """Return the state of an upstream of a route's service. It exists as long as any route keeps it."""
        key = (route.account, route.service, str(upstream))
        state = self._kept.get(key)
        if state is None:
            state = self._kept[key] = UpstreamState()
        return state

    def __len__(self) -> int:
        return len(self._kept)
