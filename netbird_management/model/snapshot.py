"""What is true of an account right now, in memory: gates and maps are answered from here, never from the database.

A snapshot is immutable. Whoever changes an account does it through `State.change`: one transaction, and after its
commit the snapshot is replaced in one assignment and the subscribers are told what changed.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MappingProxyType
from typing import Any, Final, TypeVar

from immutables import Map

from netbird_host.sources import unmapped
from netbird_management.model.accounts import (
    ALL_GROUP,
    NO_DNS,
    Account,
    CustomDomain,
    Dns,
    Group,
    NetworkResource,
    Peer,
    Policy,
    Revoked,
    RoutedNetwork,
    User,
)
from netbird_management.model.domains import covers, fold, upwards
from netbird_management.model.errors import InvalidArgument
from netbird_management.model.ids import AccountId, GroupId, PeerId, PolicyId, ServiceId, UserId
from netbird_management.model.indexes import Names, ServiceIndex
from netbird_management.model.services import Service

RECENT: Final = 64
"""Changes that a snapshot remembers of those before it."""
_NO_INDEX: Final = ServiceIndex.of(())
_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True, eq=False)
class AccountSnapshot:
    """One account with all that belongs to it. Build it with `of`, which makes the indexes, or shares those of the one
    before it as far as nothing changed: what a change costs does not grow with the services that it leaves alone."""

    account: Account
    users: Mapping[UserId, User]
    groups: Mapping[GroupId, Group]
    peers: Mapping[PeerId, Peer]
    services: Mapping[ServiceId, Service]
    policies: Mapping[PolicyId, Policy]
    custom_domains: tuple[CustomDomain, ...] = ()
    dns: Dns = NO_DNS
    networks: tuple[RoutedNetwork, ...] = ()
    """What is behind routing peers, ordered by id."""
    revocations: tuple[Revoked, ...] = ()
    """Of the last day, when it was read; the oldest first."""
    generation: int = 0
    """Rises with each replacement in this process."""
    index: ServiceIndex = field(default=_NO_INDEX, repr=False)
    """The services by what they name."""
    _recent: tuple[tuple[int, frozenset[ServiceId]], ...] = field(default=(), repr=False)
    """The generations before this one, and the services that were touched after each of them; the oldest first."""
    _by_key: Mapping[str, Peer] = field(default_factory=dict, repr=False)
    _by_address: Mapping[IPv4Address | IPv6Address, Peer] = field(default_factory=dict, repr=False)
    _groups_of: Mapping[PeerId, tuple[Group, ...]] = field(default_factory=dict, repr=False)
    _proxy_peers: Mapping[str, tuple[Peer, ...]] = field(default_factory=dict, repr=False)
    _resources: Mapping[str, tuple[RoutedNetwork, NetworkResource]] = field(default_factory=dict, repr=False)
    _customs: Mapping[str, CustomDomain] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        account: Account,
        *,
        users: Mapping[UserId, User] | None = None,
        groups: Mapping[GroupId, Group] | None = None,
        peers: Mapping[PeerId, Peer] | None = None,
        services: Mapping[ServiceId, Service] | None = None,
        policies: Mapping[PolicyId, Policy] | None = None,
        custom_domains: tuple[CustomDomain, ...] = (),
        dns: Dns = NO_DNS,
        networks: tuple[RoutedNetwork, ...] = (),
        revocations: tuple[Revoked, ...] = (),
        generation: int = 0,
        before: "AccountSnapshot | None" = None,
        touched: "Touched | None" = None,
    ) -> "AccountSnapshot":
        """A snapshot with its indexes. The mappings are taken as they are: do not change them afterwards.

        With `before`, it is the one after it: all that differs is `touched`, and what was not is the very mapping of
        `before`.
        """
        users, groups, peers, policies = users or {}, groups or {}, peers or {}, policies or {}
        services = services if isinstance(services, Map) else Map(services or {})
        recent: tuple[tuple[int, frozenset[ServiceId]], ...] = ()
        if before is None or touched is None:
            index = ServiceIndex.of(services.values())
        else:
            index = before.index.replaced(_some(before.services, touched.services), _some(services, touched.services))
            recent = (*before._recent[1 - RECENT :], (before.generation, touched.services))
        if before is not None and peers is before.peers:
            of_peers: tuple[Any, ...] = (before._by_key, before._by_address, before._proxy_peers)
        else:
            of_peers = _peer_indexes(peers.values())
        by_key, by_address, proxy_peers = of_peers
        same_groups = before is not None and groups is before.groups
        return cls(
            account=account,
            users=_read_only(users),
            groups=_read_only(groups),
            peers=_read_only(peers),
            services=services,
            policies=_read_only(policies),
            custom_domains=custom_domains,
            dns=dns,
            networks=networks,
            revocations=revocations,
            generation=generation,
            index=index,
            _recent=recent,
            _by_key=by_key,
            _by_address=by_address,
            _groups_of=before._groups_of if before is not None and same_groups else _memberships(groups.values()),
            _proxy_peers=proxy_peers,
            _resources=before._resources
            if before is not None and networks is before.networks
            else _resources(networks),
            _customs=before._customs
            if before is not None and custom_domains is before.custom_domains
            else {custom.domain: custom for custom in custom_domains},
        )

    def custom_domain_over(self, domain: str) -> CustomDomain | None:
        """The longest custom domain that a folded domain is or lies below."""
        return next((custom for name in upwards(domain) if (custom := self._customs.get(name)) is not None), None)

    def is_proved(self, service: Service) -> bool:
        """Whether the service's domain is known to be the account's: below the address of a shared cluster, or at or
        below a custom domain that is validated. Others are served nowhere and block nobody."""
        if not service.own_cluster and covers(service.proxy_cluster, service.domain):
            return True
        custom = self.custom_domain_over(service.domain)
        return custom is not None and custom.validated

    def touched_since(self, generation: int) -> frozenset[ServiceId] | None:
        """The services that were written since a generation of this account; `None` where nobody knows any more."""
        if generation == self.generation:
            return frozenset()
        for number, (before, _) in enumerate(self._recent):
            if before == generation:
                return frozenset().union(*(services for _, services in self._recent[number:]))
        return None

    def service_by_domain(self, domain: str) -> Service | None:
        """The service of a domain in any spelling; `None` too for what is no domain."""
        try:
            return self.index.by_domain(fold(domain))
        except ValueError:
            return None

    def peer_by_key(self, key: str) -> Peer | None:
        return self._by_key.get(key)

    def peer_by_address(self, address: str | IPv4Address | IPv6Address) -> Peer | None:
        """The peer that holds an overlay address; a v4-mapped IPv6 address is its IPv4 address.

        Raises `ValueError` for text that is no address.
        """
        parsed = ip_address(address) if isinstance(address, str) else address
        return self._by_address.get(unmapped(parsed))

    def groups_of(self, peer_id: PeerId) -> tuple[Group, ...]:
        """Every group that holds the peer, `All` included, ordered by name. A proxy's peer is in none."""
        return self._groups_of.get(peer_id, ())

    def proxy_peers(self, cluster: str) -> tuple[Peer, ...]:
        """The overlay nodes of a cluster's proxies, connected or not, ordered by id."""
        return self._proxy_peers.get(cluster, ())

    def resource(self, resource_id: str) -> tuple[RoutedNetwork, NetworkResource] | None:
        """What is behind routing peers, with the network it is in."""
        return self._resources.get(resource_id)

    def require_groups(self, group_ids: Iterable[GroupId], *, auto: bool = False) -> None:
        """Raises `InvalidArgument` for a group that the account has not; with `auto`, for `All` too."""
        for id_ in group_ids:
            group = self.groups.get(id_)
            if group is None:
                raise InvalidArgument(f"group {id_} not found")
            if auto and group.name == ALL_GROUP:
                raise InvalidArgument("the group All cannot be an auto group: every peer is in it anyway")

    def resources_in(self, group_id: GroupId) -> tuple[NetworkResource, ...]:
        """Those that policies reach by this group."""
        return tuple(one for network in self.networks for one in network.resources if group_id in one.groups)

    @property
    def group_all(self) -> Group:
        return next(group for group in self.groups.values() if group.name == ALL_GROUP)

    def members(self, group_ids: tuple[GroupId, ...] | frozenset[GroupId]) -> frozenset[PeerId]:
        """The peers in any of these groups; groups that do not exist hold nobody."""
        return frozenset().union(*(group.peers for id_ in group_ids if (group := self.groups.get(id_)) is not None))


def _read_only(values: Mapping[_K, _V]) -> Mapping[_K, _V]:
    return values if isinstance(values, MappingProxyType) else MappingProxyType(values)


def _some(values: Mapping[_K, _V], ids: Iterable[_K]) -> Iterator[_V]:
    return (values[id_] for id_ in ids if id_ in values)


def _peer_indexes(peers: Iterable[Peer]) -> tuple[Any, ...]:
    """By key, by address, and proxies' by cluster."""
    by_key: dict[str, Peer] = {}
    by_address: dict[IPv4Address | IPv6Address, Peer] = {}
    proxies: dict[str, list[Peer]] = {}
    for peer in peers:
        by_key[peer.key] = peer
        by_address[peer.ip] = peer
        if peer.ipv6 is not None:
            by_address[peer.ipv6] = peer
        if peer.proxy is not None:
            proxies.setdefault(peer.proxy.cluster, []).append(peer)
    ordered = {cluster: tuple(sorted(held, key=lambda peer: peer.id)) for cluster, held in proxies.items()}
    return by_key, by_address, ordered


def _memberships(groups: Iterable[Group]) -> dict[PeerId, tuple[Group, ...]]:
    held: dict[PeerId, list[Group]] = {}
    for group in sorted(groups, key=lambda group: (group.name, group.id)):
        for peer_id in group.peers:
            held.setdefault(peer_id, []).append(group)
    return {peer_id: tuple(found) for peer_id, found in held.items()}


def _resources(networks: Iterable[RoutedNetwork]) -> dict[str, tuple[RoutedNetwork, NetworkResource]]:
    return {resource.id: (network, resource) for network in networks for resource in network.resources}


@dataclass(frozen=True, slots=True)
class Touched:
    """Which rows a change wrote, so that only these are read again; a deleted row counts as written."""

    services: frozenset[ServiceId] = frozenset()
    peers: frozenset[PeerId] = frozenset()
    groups: frozenset[GroupId] = frozenset()
    users: frozenset[UserId] = frozenset()
    policies: frozenset[PolicyId] = frozenset()
    account: bool = False
    domains: bool = False
    dns: bool = False
    networks: bool = False
    revocations: bool = False

    def __or__(self, other: "Touched") -> "Touched":
        return Touched(
            services=self.services | other.services,
            peers=self.peers | other.peers,
            groups=self.groups | other.groups,
            users=self.users | other.users,
            policies=self.policies | other.policies,
            account=self.account or other.account,
            domains=self.domains or other.domains,
            dns=self.dns or other.dns,
            networks=self.networks or other.networks,
            revocations=self.revocations or other.revocations,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A commit, as subscribers see it: the account before and after, and what was touched.

    Changes of one account that wait for a slow subscriber are merged: the oldest `before`, the newest `after`.
    """

    account_id: AccountId
    before: AccountSnapshot | None
    after: AccountSnapshot | None
    touched: Touched

    def then(self, later: "Change") -> "Change":
        return Change(self.account_id, self.before, later.after, self.touched | later.touched)


class Changes:
    """One subscriber's notices, at most one waiting for each account, oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[AccountId, Change] = {}
        self._some = asyncio.Event()

    def put(self, change: Change) -> None:
        earlier = self._waiting.get(change.account_id)
        self._waiting[change.account_id] = change if earlier is None else earlier.then(change)
        self._some.set()

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            self._some.clear()
            await self._some.wait()
        return self._waiting.pop(next(iter(self._waiting)))


class Snapshots:
    """The current snapshot of each account, and who wants to know of the next. Belongs to one event loop.

    Reading never waits. Replacing is done by `State` after a commit, in the order of commits.
    """

    def __init__(self) -> None:
        self._accounts: dict[AccountId, AccountSnapshot] = {}
        self.names = Names()
        """Which accounts hold which domains, as services or as custom domains, once they are proved."""
        self._domains: dict[str, AccountId] = {}
        self._keys: dict[str, AccountId] = {}
        self._subscribers: set[Changes] = set()

    def get(self, account_id: str) -> AccountSnapshot | None:
        return self._accounts.get(AccountId(account_id))

    def all(self) -> tuple[AccountSnapshot, ...]:
        return tuple(self._accounts.values())

    def by_domain(self, domain: str) -> tuple[AccountSnapshot, Service] | None:
        """The service of a domain in any spelling, whichever account it is in, if the domain is proved."""
        try:
            account_id = self._domains.get(fold(domain))
        except ValueError:
            return None
        snapshot = self._accounts.get(account_id) if account_id is not None else None
        service = snapshot.service_by_domain(domain) if snapshot is not None else None
        return (snapshot, service) if snapshot is not None and service is not None else None

    def by_peer_key(self, key: str) -> tuple[AccountSnapshot, Peer] | None:
        """The peer with this WireGuard public key, whichever account it is in."""
        account_id = self._keys.get(key)
        snapshot = self._accounts.get(account_id) if account_id is not None else None
        peer = snapshot.peer_by_key(key) if snapshot is not None else None
        return (snapshot, peer) if snapshot is not None and peer is not None else None

    @contextmanager
    def subscribe(self) -> Iterator[Changes]:
        """Notices of every commit from now on: `with snapshots.subscribe() as changes: async for change in changes`."""
        changes = Changes()
        self._subscribers.add(changes)
        try:
            yield changes
        finally:
            self._subscribers.discard(changes)

    def replace(self, account_id: AccountId, after: AccountSnapshot | None, touched: Touched) -> None:
        """Put a new snapshot in place and tell everybody. Called by `State` alone."""
        before = self._accounts.get(account_id)
        # Custom domains decide which services' names are proved.
        whole = before is None or after is None or before.custom_domains is not after.custom_domains
        if before is not None:
            for service in before.services.values() if whole else _some(before.services, touched.services):
                if not before.is_proved(service):
                    continue
                self.names.remove(account_id, service.domain)
                if self._domains.get(service.domain) == account_id:
                    del self._domains[service.domain]
            for peer in before.peers.values() if whole else _some(before.peers, touched.peers):
                if self._keys.get(peer.key) == account_id:
                    del self._keys[peer.key]
        if after is None:
            self._accounts.pop(account_id, None)
        else:
            self._accounts[account_id] = after
            for service in after.services.values() if whole else _some(after.services, touched.services):
                if not after.is_proved(service):
                    continue
                self.names.add(account_id, service.domain)
                self._domains[service.domain] = account_id
            for peer in after.peers.values() if whole else _some(after.peers, touched.peers):
                self._keys[peer.key] = account_id
        self._rename(account_id, before, after)
        change = Change(account_id, before, after, touched)
        for subscriber in self._subscribers:
            subscriber.put(change)

    def _rename(self, account_id: AccountId, before: AccountSnapshot | None, after: AccountSnapshot | None) -> None:
        old = before.custom_domains if before is not None else ()
        new = after.custom_domains if after is not None else ()
        if old is not new:
            for custom in filter(_is_validated, old):
                self.names.remove(account_id, custom.domain)
            for custom in filter(_is_validated, new):
                self.names.add(account_id, custom.domain)


def _is_validated(custom: CustomDomain) -> bool:
    return custom.validated
