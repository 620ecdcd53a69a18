"""Networks with NATs in memory and virtual time, and the NAT's table itself, which the NAT over TUN uses as well."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Protocol

from netbird_overlay.endpoints import Endpoint


class Behavior(Enum):
    """NATs by the old names (RFC 3489), since these four are what paths differ by.

    The first three map an inside address to one outside address for all destinations. They differ in what they let
    in: anything; datagrams from hosts, or from addresses and ports, to which the inside has sent. A symmetric NAT maps
    anew for each destination, and lets in as a port-restricted one does.
    """

    FULL_CONE = "full cone"
    ADDRESS_RESTRICTED = "address-restricted"
    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC = "symmetric"


@dataclass(slots=True)
class Mapping:
    """One outside port: the inside address behind it, and each destination with the time until which it may answer."""

    inside: Endpoint
    outside: Endpoint
    expires: float
    permitted: dict[Endpoint, float] = field(default_factory=dict)


class NatTable:
    """A NAT's state: which outside address an inside one has, and which datagrams are let in.

    Args:
        lifetime: seconds after the last outgoing datagram at which a mapping, or a permission in it, ends.
    """

    def __init__(self, behavior: Behavior, address: str, random: Random, *, lifetime: float = 60.0) -> None:
        self.behavior, self.address, self.lifetime = behavior, address, lifetime
        self._random = random
        self._by_key: dict[tuple[Endpoint, Endpoint | None], Mapping] = {}
        self._by_port: dict[int, Mapping] = {}

    def outgoing(self, inside: Endpoint, destination: Endpoint, now: float) -> Endpoint:
        """Return the source that the destination sees."""
        key = inside, destination if self.behavior is Behavior.SYMMETRIC else None
        mapping = self._by_key.get(key)
        if mapping is None or mapping.expires <= now:
            if mapping is not None:
                del self._by_port[mapping.outside.port]
            port = next(port for port in iter(self._any_port, 0) if port not in self._by_port)
            mapping = Mapping(inside, Endpoint(self.address, port), 0)
            self._by_key[key] = self._by_port[port] = mapping
        mapping.expires = now + self.lifetime
        mapping.permitted[destination] = now + self.lifetime
        return mapping.outside

    def incoming(self, source: Endpoint, port: int, now: float) -> Endpoint | None:
        """Return the inside address to which a datagram goes, or None if it is dropped."""
        mapping = self._by_port.get(port)
        if mapping is None or mapping.expires <= now:
            return None
        live = [endpoint for endpoint, until in mapping.permitted.items() if until > now]
        match self.behavior:
            case Behavior.FULL_CONE:
                admitted = True
            case Behavior.ADDRESS_RESTRICTED:
                admitted = any(endpoint.host == source.host for endpoint in live)
            case _:
                admitted = source in live
        return mapping.inside if admitted else None

    def forget(self) -> None:
        """Restart the NAT: all mappings are gone."""
        self._by_key.clear()
        self._by_port.clear()

    def _any_port(self) -> int:
        return self._random.randrange(1024, 65536)


class Party(Protocol):
    """A sans-IO user of one socket."""

    def receive(self, datagram: bytes, source: Endpoint, now: float) -> object: ...
    def advance(self, now: float) -> None: ...
    @property
    def deadline(self) -> float: ...
    def transmits(self) -> list[tuple[bytes, Endpoint]]: ...


@dataclass(frozen=True)
class Crossing:
    """A datagram on its way, with the source that its sender has there."""

    at: float
    datagram: bytes
    source: Endpoint
    destination: Endpoint


@dataclass
class Site:
    """A network of its own: hosts that reach each other, and the rest of the world through `nat`, or directly."""

    nat: NatTable | None = None
    hosts: dict[Endpoint, Party] = field(default_factory=dict)


@dataclass
class World:
    """Hosts in sites, joined by a network with loss and delay. Time advances in `run`, from one event to the next.

    `cut`, if set, returns True for each datagram that is lost besides those that chance loses.
    """

    seed: int = 0
    delay: float = 0.02
    jitter: float = 0.0
    loss: float = 0.0
    now: float = 1000.0
    cut: Callable[[Crossing], bool] | None = None

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.sites: list[Site] = [Site()]
        self._due: list[tuple[float, int, Crossing, Site]] = []
        self._order = itertools.count()

    @property
    def internet(self) -> Site:
        """The site without NAT, where servers are."""
        return self.sites[0]

    def site(self, behavior: Behavior | None, address: str, *, lifetime: float = 60.0) -> Site:
        """Add a site behind a NAT with this outside address; None: a site on the internet itself."""
        if behavior is None:
            return self.internet
        site = Site(NatTable(behavior, address, Random(self.random.random()), lifetime=lifetime))
        self.sites.append(site)
        return site

    def send(self, datagram: bytes, source: Endpoint, destination: Endpoint, site: Site) -> None:
        """Send from a host of a site."""
        if destination not in site.hosts and site.nat is not None:
            source = site.nat.outgoing(source, destination, self.now)
            site = self.internet
        crossing = Crossing(self.now, datagram, source, destination)
        if (self.cut is not None and self.cut(crossing)) or self.random.random() < self.loss:
            return
        at = self.now + self.delay + self.random.uniform(0, self.jitter)
        heapq.heappush(self._due, (at, next(self._order), crossing, site))

    def _arrive(self, crossing: Crossing, site: Site) -> None:
        destination: Endpoint | None = crossing.destination
        if site is self.internet:
            behind = next(
                (each for each in self.sites if each.nat and each.nat.address == crossing.destination.host), None
            )
            if behind is not None and behind.nat is not None:
                site, destination = behind, behind.nat.incoming(crossing.source, crossing.destination.port, self.now)
        if destination is not None and destination in site.hosts:
            site.hosts[destination].receive(crossing.datagram, crossing.source, self.now)

    def _flush(self) -> None:
        for site in self.sites:
            for endpoint, party in site.hosts.items():
                for datagram, destination in party.transmits():
                    self.send(datagram, endpoint, destination, site)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let up to this many seconds pass. True if `until` became true in time, or without `until`."""
        end = self.now + seconds
        self._flush()
        while until is None or not until():
            deadlines = (party.deadline for site in self.sites for party in site.hosts.values())
            self.now = max(self.now, min(end, self._due[0][0] if self._due else math.inf, *deadlines))
            while self._due and self._due[0][0] <= self.now:
                _, _, crossing, site = heapq.heappop(self._due)
                self._arrive(crossing, site)
            for site in self.sites:
                for party in site.hosts.values():
                    if party.deadline <= self.now:
                        party.advance(self.now)
            self._flush()
            if self.now >= end:
                return until is None or until()
        return True
