"""Resolves the names that are dialed through the node, in the order of NetBird's agents.

Domain routes go first, then the account's own zones, then its name servers by the longest domain. A name that none of
them knows cannot be dialed: the host's own names are not the overlay's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from netbird_overlay.errors import Failed, Unreachable
from netbird_overlay.members import plain_address
from netbird_overlay.membership.name_servers import (
    Exchange,
    NoAnswer,
    NoSuchName,
    ServerGroup,
    ask_group,
    host_exchange,
    matching,
    read_groups,
)
from netbird_overlay.membership.zones import Outcome, Zones, fold
from netbird_wire.management_pb2 import DNSConfig

SYSTEM_TIMEOUT = 4.0
"""Maximum time in seconds for the host's resolver, which looks up aliases that lead out of the account's zones."""
KEPT, MAX_KEPT = 15.0, 1024
"""Seconds for which, and maximum number of names for which, answers of name servers are kept."""
MAX_NAME = 253

DomainRoutes = Callable[[str], Awaitable[Sequence[str]] | None]
"""Returns the look-up of a folded name through a domain route, or None if no route has the name."""


async def system_addresses(name: str) -> tuple[str, ...]:
    """Return the addresses of a name from the host's resolver. Raises OSError."""
    entries = await asyncio.get_running_loop().getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    plain = (plain_address(str(entry[4][0])) for entry in entries)
    return tuple(dict.fromkeys(address for address in plain if address is not None))


@dataclass(frozen=True, slots=True)
class NameSources:
    """The zones and name servers of a map."""

    zones: Zones = field(default_factory=Zones)
    groups: tuple[ServerGroup, ...] = ()


def read_names(config: DNSConfig) -> NameSources:
    """Read a map's DNS configuration. Nothing but domain routes resolves while its service is off."""
    if not config.ServiceEnable:
        return NameSources()
    return NameSources(Zones(config.CustomZones), read_groups(config.NameServerGroups))


class Names:
    """The names of one overlay.

    Args:
        ipv6: True if our node has an IPv6 address, so that IPv6 addresses can be dialed.
        domain_routes: looks a name up through its routing peer.
        exchange: sends a query to a name server of the account.
        system: the host's resolver.
    """

    def __init__(
        self,
        *,
        ipv6: bool,
        domain_routes: DomainRoutes = lambda name: None,
        exchange: Exchange = host_exchange,
        system: Callable[[str], Awaitable[Sequence[str]]] = system_addresses,
    ) -> None:
        self._ipv6 = ipv6
        self._kinds = ("A", "AAAA") if ipv6 else ("A",)
        self._domain_routes = domain_routes
        self._exchange = exchange
        self._system = system
        self._sources = NameSources()
        self._kept: dict[str, tuple[float, tuple[str, ...]]] = {}

    def use(self, sources: NameSources) -> None:
        """Resolve by a map's zones and name servers. Kept answers of other name servers are forgotten."""
        if sources.groups != self._sources.groups:
            self._kept.clear()
        self._sources = sources

    @property
    def zones(self) -> Zones:
        """The account's zones; none while management has DNS switched off."""
        return self._sources.zones

    def local(self, name: str) -> tuple[str, ...]:
        """Return the addresses that the account's zones have for a folded name."""
        return self._sources.zones.lookup(name, ipv6=self._ipv6).addresses

    async def resolve(self, name: str) -> Sequence[str]:
        """Return the addresses of a name, in the order in which they are to be dialed.

        Raises:
            Unreachable: the name is not the overlay's, or does not exist.
            Failed: no server answered.
        """
        folded = fold(name)
        if not folded or len(folded) > MAX_NAME or not folded.isascii():
            raise Unreachable(f"{name!r} is not a name of the overlay")
        routed = self._domain_routes(folded)
        if routed is not None:
            return await routed
        answer = self._sources.zones.lookup(folded, ipv6=self._ipv6)
        match answer.outcome:
            case Outcome.FOUND:
                return answer.addresses
            case Outcome.EMPTY | Outcome.MISSING:
                raise Unreachable(f"the overlay's zone has no address of {folded}")
            case Outcome.ALIAS:
                return await self._alias(folded, answer.alias)
            case Outcome.ELSEWHERE:
                return await self._ask_servers(folded)

    async def _alias(self, name: str, alias: str) -> Sequence[str]:
        routed = self._domain_routes(alias)
        if routed is not None:
            return await routed
        try:
            async with asyncio.timeout(SYSTEM_TIMEOUT):
                return await self._system(alias)
        except (TimeoutError, OSError) as exc:
            raise Failed(f"{alias}, of which {name} is an alias, has no address: {exc or 'no answer'}") from exc

    async def _ask_servers(self, name: str) -> Sequence[str]:
        now = asyncio.get_running_loop().time()
        kept = self._kept.get(name)
        if kept is not None and now < kept[0]:
            return kept[1]
        why = "no zone and no name server of the overlay has it"
        for groups in matching(self._sources.groups, name):
            try:
                addresses = await self._race(groups, name)
            except NoSuchName:
                raise Unreachable(f"{name} does not exist") from None
            except NoAnswer as exc:
                why = str(exc)
                continue
            if not addresses:
                raise Unreachable(f"{name} has no address")
            if len(self._kept) >= MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[name] = (now + KEPT, addresses)
            return addresses
        raise Unreachable(f"{name} cannot be resolved: {why}")

    async def _race(self, groups: Sequence[ServerGroup], name: str) -> tuple[str, ...]:
        """Return the first answer of several groups that have the same domain. Raises NoSuchName, NoAnswer."""
        if len(groups) == 1:
            return await ask_group(groups[0], name, self._kinds, self._exchange)
        failure: NoAnswer = NoAnswer(f"no name server answers for {name}")
        async with asyncio.TaskGroup() as tasks:
            pending = {tasks.create_task(self._outcome(group, name)) for group in groups}
            try:
                while pending:
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        outcome = task.result()
                        if isinstance(outcome, NoAnswer):
                            failure = outcome
                        elif isinstance(outcome, NoSuchName):
                            raise outcome
                        else:
                            return outcome
            finally:
                for task in pending:
                    task.cancel()
        raise failure

    async def _outcome(self, group: ServerGroup, name: str) -> tuple[str, ...] | NoSuchName | NoAnswer:
        try:
            return await ask_group(group, name, self._kinds, self._exchange)
        except (NoSuchName, NoAnswer) as exc:
            return exc
