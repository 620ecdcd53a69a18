"""The choice of an upstream for each try of one route."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Sequence

from netbird_load_balancing.cookie import NOTE, StickyCookie
from netbird_load_balancing.health import UpstreamState, UpstreamStates
from netbird_load_balancing.settings import LoadBalancingSettings, TargetWeight
from netbird_proxy import ExchangeView, ProxyError, RouteSpec, Upstream, source_of


class _Member:
    """An upstream of the route, with its weight and state.

    Attributes:
        turn: the credit of smooth weighted round-robin; over all members it sums up to 0.
    """

    __slots__ = ("name", "state", "turn", "upstream", "weight")

    def __init__(self, upstream: Upstream, state: UpstreamState) -> None:
        weight: TargetWeight | None = upstream.values.get(TargetWeight)
        self.upstream = upstream
        self.name = str(upstream).encode()
        self.weight = 1 if weight is None else weight.weight
        self.state = state
        self.turn = 0


class Balancer:
    """Picks among the upstreams of one route, and learns from the outcomes.

    Args:
        cookie: the route's cookie, where clients keep their upstream by one.
        clock: monotonic seconds.
        count: called with the name of a counter.
    """

    def __init__(
        self,
        route: RouteSpec,
        settings: LoadBalancingSettings,
        states: UpstreamStates,
        *,
        cookie: StickyCookie | None = None,
        clock: Callable[[], float] = time.monotonic,
        count: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._settings = settings
        self._cookie = cookie
        self._clock = clock
        self._count = count
        self._members = tuple(_Member(upstream, states.of(route, upstream)) for upstream in route.upstreams)
        self._by_identity = {id(member.upstream): member for member in self._members}
        self._random = random.Random()  # noqa: S311 - it spreads load and keeps no secret

    def pick(self, exchange: ExchangeView, candidates: Sequence[Upstream], _tried: Sequence[Upstream]) -> Upstream:
        """Return the upstream for the next try, and count it as pending until its outcome."""
        usable = self._healthy([self._by_identity[id(upstream)] for upstream in candidates])
        member = self._kept(exchange, usable) or self._by_policy(usable)
        member.state.pending += 1
        return member.upstream

    def outcome(self, upstream: Upstream, error: ProxyError | None) -> None:
        state = self._by_identity[id(upstream)].state
        if state.ended(error, self._settings.ejection, self._clock()):
            self._count("load_balancing_ejected")

    def _healthy(self, candidates: list[_Member]) -> list[_Member]:
        """Leave out ejected upstreams: at most half of the route's, the longest ejected ones first.

        If all upstreams of the route are ejected, or only ejected ones are left for this exchange, none is left out.
        """
        now = self._clock()
        ejected = [member for member in self._members if member.state.ejected_until > now]
        if not ejected or len(ejected) == len(self._members):
            return candidates
        ejected.sort(key=lambda member: member.state.ejected_until, reverse=True)
        left_out = ejected[: len(self._members) // 2]
        return [member for member in candidates if member not in left_out] or candidates

    def _kept(self, exchange: ExchangeView, usable: Sequence[_Member]) -> _Member | None:
        """Return the member that the client keeps, if it can be used."""
        if self._settings.sticky == "source":
            return _by_source(exchange, usable)
        if self._cookie is None or (named := self._cookie.named_by(exchange)) is None:
            return None
        member = next((member for member in usable if member.upstream is named), None)
        if member is not None:
            exchange.note(NOTE, named)
        return member

    def _by_policy(self, usable: Sequence[_Member]) -> _Member:
        match self._settings.policy:
            case "round_robin":
                return _in_turn(usable)
            case "least_pending":
                return _least_pending(usable)
            case "random":
                return self._random.choices(usable, [member.weight for member in usable])[0]


def _in_turn(usable: Sequence[_Member]) -> _Member:
    """Smooth weighted round-robin: the turns of a heavy upstream are spread between those of the others."""
    for member in usable:
        member.turn += member.weight
    chosen = max(usable, key=lambda member: member.turn)
    chosen.turn -= sum(member.weight for member in usable)
    return chosen


def _least_pending(usable: Sequence[_Member]) -> _Member:
    """The upstream with the least load for its weight once it has this try too; equal ones take turns."""
    loads = [(member.state.pending + 1) / member.weight for member in usable]
    least = min(loads)
    return _in_turn([member for member, load in zip(usable, loads, strict=True) if load == least])


def _by_source(exchange: ExchangeView, usable: Sequence[_Member]) -> _Member:
    """Rendezvous hashing by weight: if an upstream comes or goes, the clients of the others keep theirs."""
    overlay = exchange.origin is not None and exchange.origin.is_tunnel
    source = (exchange.client_address if overlay else source_of(exchange.client_address)).encode()

    def distance(member: _Member) -> float:
        digest = hashlib.blake2b(member.name + b"\0" + source, digest_size=8).digest()
        return -math.log((int.from_bytes(digest) + 1) / (2**64 + 1)) / member.weight

    return min(usable, key=distance)
