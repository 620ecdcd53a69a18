"""Names behind routing peers: resolved by the routing peer, through the tunnel, and routed to it by their addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address

from netbird_overlay.errors import Failed, Unreachable
from netbird_overlay.members import plain_address
from netbird_overlay.membership.name_servers import Exchange, NoAnswer, NoSuchName, ask
from netbird_overlay.membership.peer_routes import RouteGroup

QUERY_TIMEOUT = 8.0
DEFAULT_FORWARDER_PORT = 5353
MAX_OF_NAME, MAX_ADDRESSES = 128, 4096
"""Maximum number of addresses that are routed for one name, and for all names."""

GroupId = tuple[str, str, tuple[str, ...]]


def has_name(domains: Iterable[str], name: str) -> int:
    """Return the length of the longest pattern that a folded name matches, 0 for none.

    `a.b` matches itself; `*.a.b` matches each name below `a.b`, but not `a.b`.
    """
    lengths = [
        len(domain)
        for domain in domains
        if (name.endswith(domain[1:]) and len(name) >= len(domain) if domain.startswith("*.") else name == domain)
    ]
    return max(lengths, default=0)


class DomainRoutes:
    """Looks names up through the routing peers of their groups.

    Args:
        forwarder: returns the overlay address of the peer that carries a group; raises ConnectError.
        exchange: sends a query through the tunnel.
        learned: called when addresses changed, before they are given to anyone, so that they are routed.
        ipv6: True if our node has an IPv6 address.
    """

    def __init__(
        self,
        *,
        forwarder: Callable[[RouteGroup], str],
        exchange: Exchange,
        learned: Callable[[], None],
        ipv6: bool,
    ) -> None:
        self._forwarder = forwarder
        self._exchange = exchange
        self._learned = learned
        self._kinds = ("A", "AAAA") if ipv6 else ("A",)
        self._groups: tuple[RouteGroup, ...] = ()
        self._addresses: dict[tuple[GroupId, str], tuple[str, ...]] = {}
        self.port = DEFAULT_FORWARDER_PORT

    def replace(self, groups: Iterable[RouteGroup], port: int) -> None:
        """Apply a map's groups. Addresses of groups that stay are kept."""
        self._groups = tuple(group for group in groups if group.domains)
        ids = {group.id for group in self._groups}
        self._addresses = {at: addresses for at, addresses in self._addresses.items() if at[0] in ids}
        self.port = port if 0 < port < 65536 else DEFAULT_FORWARDER_PORT

    def addresses(self) -> dict[GroupId, tuple[str, ...]]:
        """Return the addresses of each group, from the answers so far."""
        addresses: dict[GroupId, tuple[str, ...]] = {}
        for (group, _), routed in self._addresses.items():
            addresses[group] = (*addresses.get(group, ()), *routed)
        return addresses

    def lookup(self, name: str) -> Awaitable[Sequence[str]] | None:
        """Return the look-up of a folded name, or None if no route has it."""
        group = self.group_of(name)
        return self._ask(group, name) if group is not None else None

    def group_of(self, name: str) -> RouteGroup | None:
        """Return the group with the longest pattern that a folded name matches."""
        best = max(self._groups, key=lambda group: has_name(group.domains, name), default=None)
        return best if best is not None and has_name(best.domains, name) else None

    async def _ask(self, group: RouteGroup, name: str) -> Sequence[str]:
        server = self._forwarder(group)
        try:
            addresses = await ask(server, self.port, name, self._kinds, self._exchange, timeout=QUERY_TIMEOUT)
        except NoSuchName:
            raise Unreachable(f"{name} does not exist, says the routing peer of {group.name}") from None
        except NoAnswer as exc:
            raise Failed(f"{name}: the routing peer of {group.name} does not resolve it: {exc}") from exc
        usable = tuple(address for address in addresses if _can_be_routed(address))
        if not usable:
            raise Unreachable(f"{name} has no address, says the routing peer of {group.name}")
        return self._learn(group, name, usable)

    def _learn(self, group: RouteGroup, name: str, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """Keep the addresses of a name, so that they are routed. The names that were asked for last are kept."""
        before = self._addresses.pop((group.id, name), ())
        kept = (*addresses, *(before if group.keep else ()))
        after = self._addresses[group.id, name] = tuple(dict.fromkeys(kept))[:MAX_OF_NAME]
        if after != before:
            total = sum(map(len, self._addresses.values()))
            while total > MAX_ADDRESSES:
                total -= len(self._addresses.pop(next(iter(self._addresses))))
            self._learned()
        return addresses


def _can_be_routed(text: str) -> bool:
    address = ip_address(text)
    return plain_address(text) is not None and not (
        address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local
    )
