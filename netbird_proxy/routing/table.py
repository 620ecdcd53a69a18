"""The routes in force, matched by folded host, then by the longest raw prefix on a segment border."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from netbird_proxy.api.model import OWN_PATHS, AccountId, RouteSpec
from netbird_proxy.http.folding import FOLDS, climbs, fold_authority, fold_host, readings
from netbird_proxy.pipeline.ending import Runner
from netbird_proxy.pipeline.head_rules import HeadRules

_CLIMBING = re.compile(rb"%|\\|/\.\.")
_ENCODED_SEPARATOR = re.compile(rb"%(?:2[fF]|5[cC])")
_PERCENT = 0x25  # an int: `b"%" in path` is twenty times slower, see http/head.py


class Route:
    """The handler of a host and prefix: a compiled pipeline, or a fixed answer.

    Attributes:
        spec: the route's specification; None for a fixed answer without a mapping.
        upgrades: runs if the client requests an upgrade. If a guard of the route cannot judge upgrades, it is `runner`,
            which refuses them.
        bounded: a target's path is below `/`, so that dot segments must not lead above it.
    """

    __slots__ = ("bounded", "rules", "runner", "spec", "upgrades")

    def __init__(
        self,
        spec: RouteSpec | None,
        runner: Runner,
        rules: HeadRules | None = None,
        *,
        upgrades: Runner | None = None,
        bounded: bool = False,
    ) -> None:
        self.spec = spec
        self.runner = runner
        self.upgrades = upgrades or runner
        self.rules = rules or HeadRules()
        self.bounded = bounded

    def __repr__(self) -> str:
        if self.spec is None:
            return f"Route(none, {type(self.runner).__name__})"
        return f"Route({self.spec.service} {self.spec.host}{self.spec.prefix.decode('latin-1')})"


_OWN_PATHS = OWN_PATHS.encode()


class HostRoutes:
    """All routes of a host, which belong to a single mapping.

    Args:
        routes: raw prefix → route.
        endpoints: plugin → the route of its own application, under `/__netbird__/<plugin>/`.
        ambiguous: answers a path that can be read in two ways.
        differ: the routes are guarded differently, so that all readings of a path must lead to the same route.
    """

    __slots__ = ("_also", "_ambiguous", "_differ", "_endpoints", "_folded", "_routes", "account")

    def __init__(
        self,
        account: AccountId,
        routes: Mapping[bytes, Route],
        ambiguous: Route,
        *,
        differ: bool = False,
        endpoints: Mapping[bytes, Route] | None = None,
    ) -> None:
        self.account = account
        self._ambiguous = ambiguous
        self._differ = differ
        self._endpoints = dict(endpoints or {})
        self._routes = _by_length({_bare(prefix): route for prefix, route in routes.items()})
        # Most prefixes can be read in a single way. Otherwise, an upstream that folds a path folds the prefix too.
        self._also, self._folded = _folded(routes) if differ else (0, {})

    @property
    def routes(self) -> list[Route]:
        return [route for _, _, route in self._routes]

    def match(self, path: bytes) -> Route | None:
        """The route for a raw path; `ambiguous` if another reading of the path may be guarded differently."""
        if path.startswith(_OWN_PATHS):
            return self._endpoints.get(path[len(_OWN_PATHS) :].partition(b"/")[0])
        route = _longest(self._routes, path)
        if self._differ and not self._is_plain(path, route):
            return self._ambiguous
        if route is not None and route.bounded and _CLIMBING.search(path):
            prefix = route.spec.prefix if route.spec is not None else b"/"
            if climbs(path[len(_bare(prefix)) :]):
                return self._ambiguous
        return route

    def _is_plain(self, path: bytes, route: Route | None) -> bool:
        """True if every reading of a path leads to this route."""
        if _PERCENT in path and _ENCODED_SEPARATOR.search(path):
            return False  # a segment border to some upstreams, part of a name to others
        forms = readings(path, self._also)
        return forms is not None and all(
            _longest(self._folded.get(applied & self._also, self._routes), form) is route
            for applied, form in forms.items()
        )


class Table:
    """All routes in force. Immutable: each apply makes a new table and assigns it."""

    __slots__ = ("hosts", "no_route")

    def __init__(self, hosts: Mapping[str, HostRoutes], no_route: Route) -> None:
        self.hosts = hosts
        self.no_route = no_route

    def match(self, host: str, path: bytes, account: AccountId | None) -> Route:
        """The route of a folded host and a raw path.

        Args:
            account: the account whose tunnel the exchange came in on, which reaches only that account's routes; None on
                a host listener.
        """
        entry = self.hosts.get(host)
        if entry is None or (account is not None and account != entry.account):
            return self.no_route
        return entry.match(path) or self.no_route


def _bare(prefix: bytes) -> bytes:
    """The prefix without its trailing slash (empty for the root): `/` or the end of the path must follow it."""
    return prefix.rstrip(b"/")


_Prefixes = tuple[tuple[bytes, int, Route], ...]


def _by_length(routes: Mapping[bytes, Route]) -> _Prefixes:
    return tuple((prefix, len(prefix), routes[prefix]) for prefix in sorted(routes, key=len, reverse=True))


def _folded(routes: Mapping[bytes, Route]) -> tuple[int, dict[int, _Prefixes]]:
    """The folds that change a prefix, as bits of `FOLDS`; and set of applied folds → the folded prefixes."""
    also = 0
    for applied in (applied for prefix in routes for applied in readings(prefix) or ()):
        also |= applied
    forms = {prefix: readings(prefix, also) or {} for prefix in routes}
    return also, {
        applied: _by_length({_bare(forms[prefix].get(applied, prefix)): route for prefix, route in routes.items()})
        for applied in range(1, 1 << len(FOLDS))
        if applied & also == applied
    }


def _longest(routes: Sequence[tuple[bytes, int, Route]], path: bytes) -> Route | None:
    for prefix, length, route in routes:
        if path.startswith(prefix) and (path[length : length + 1] == b"/" or (length and len(path) == length)):
            return route
    return None


__all__ = ["HostRoutes", "Route", "Table", "fold_authority", "fold_host"]
