"""Snapshots: the current state of each account in memory. Gates and maps read snapshots, never the database.

A snapshot is immutable. Every change of an account goes through `State.change`: one transaction; after its commit, one
assignment replaces the snapshot, and the subscribers are notified of what changed.
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

# Number of previous changes that a snapshot remembers.
RECENT: Final = 64
_NO_INDEX: Final = ServiceIndex.of(())
_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True, eq=False)
class AccountSnapshot:
    """One account with everything that belongs to it.

    `of` builds a snapshot with its indexes, and shares unchanged indexes with the snapshot before it, so the cost of a
    change does not grow with the number of unchanged services.
    """

    account: Account
    users: Mapping[UserId, User]
    groups: Mapping[GroupId, Group]
    peers: Mapping[PeerId, Peer]
    services: Mapping[ServiceId, Service]
    policies: Mapping[PolicyId, Policy]
    custom_domains: tuple[CustomDomain, ...] = ()
    dns: Dns = NO_DNS
    networks: tuple[RoutedNetwork, ...] = ()
    """Networks behind routing peers, ordered by id."""
    revocations: tuple[Revoked, ...] = ()
    """Revocations of the last day, counted from the moment of reading; oldest first."""
    generation: int = 0
    """Number that rises with each replacement in this process."""
    index: ServiceIndex = field(default=_NO_INDEX, repr=False)
    """Services by domain, cluster, port, target and group."""
    # Previous generations, each with the services touched after it; oldest first.
    _recent: tuple[tuple[int, frozenset[ServiceId]], ...] = field(default=(), repr=False)
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
        """A snapshot with its indexes. It keeps the mappings without copying: the caller must not change them later.

        `before` is the previous snapshot, if any. The caller then passes the very mappings of `before` for every
        part that `touched` does not name.
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
        """The longest custom domain that equals a folded domain or is a parent of it."""
        return next((custom for name in upwards(domain) if (custom := self._customs.get(name)) is not None), None)

    def is_proved(self, service: Service) -> bool:
        """True if the service's domain is proved to be the account's.

        A domain is proved below the address of a shared cluster, and at or below a validated custom domain. A service
        with an unproved domain is not served, and its domain stays available to other accounts.
        """
        if not service.own_cluster and covers(service.proxy_cluster, service.domain):
            return True
        custom = self.custom_domain_over(service.domain)
        return custom is not None and custom.validated

    def touched_since(self, generation: int) -> frozenset[ServiceId] | None:
        """The services written since a generation of this account; `None` if that one is too old to be remembered."""
        if generation == self.generation:
            return frozenset()
        for number, (before, _) in enumerate(self._recent):
            if before == generation:
                return frozenset().union(*(services for _, services in self._recent[number:]))
        return None

    def service_by_domain(self, domain: str) -> Service | None:
        """The service of a domain in any spelling; `None` also for text that is not a domain."""
        try:
            return self.index.by_domain(fold(domain))
        except ValueError:
            return None

    def peer_by_key(self, key: str) -> Peer | None:
        return self._by_key.get(key)

    def peer_by_address(self, address: str | IPv4Address | IPv6Address) -> Peer | None:
        """The peer with an overlay address; a v4-mapped IPv6 address counts as its IPv4 address.

        Raises `ValueError` for text that is not an address.
        """
        parsed = ip_address(address) if isinstance(address, str) else address
        return self._by_address.get(unmapped(parsed))

    def groups_of(self, peer_id: PeerId) -> tuple[Group, ...]:
        """Every group of the peer, `All` included, ordered by name. A proxy's peer is in no group."""
        return self._groups_of.get(peer_id, ())

    def proxy_peers(self, cluster: str) -> tuple[Peer, ...]:
        """The overlay nodes of a cluster's proxies, connected or not, ordered by id."""
        return self._proxy_peers.get(cluster, ())

    def resource(self, resource_id: str) -> tuple[RoutedNetwork, NetworkResource] | None:
        """The network resource with this id, and its network."""
        return self._resources.get(resource_id)

    def require_groups(self, group_ids: Iterable[GroupId], *, auto: bool = False) -> None:
        """Raises `InvalidArgument` for a group that is not in the account; with `auto`, for `All` too."""
        for id_ in group_ids:
            group = self.groups.get(id_)
            if group is None:
                raise InvalidArgument(f"group {id_} not found")
            if auto and group.name == ALL_GROUP:
                raise InvalidArgument("the group All cannot be an auto group: every peer is already a member")

    def resources_in(self, group_id: GroupId) -> tuple[NetworkResource, ...]:
        """The network resources in this group."""
        resources = (resource for network in self.networks for resource in network.resources)
        return tuple(resource for resource in resources if group_id in resource.groups)

    @property
    def group_all(self) -> Group:
        return next(group for group in self.groups.values() if group.name == ALL_GROUP)

    def members(self, group_ids: tuple[GroupId, ...] | frozenset[GroupId]) -> frozenset[PeerId]:
        """The peers in any of these groups; a group that does not exist counts as empty."""
        return frozenset().union(*(group.peers for id_ in group_ids if (group := self.groups.get(id_)) is not None))


def _read_only(values: Mapping[_K, _V]) -> Mapping[_K, _V]:
    return values if isinstance(values, MappingProxyType) else MappingProxyType(values)


def _some(values: Mapping[_K, _V], ids: Iterable[_K]) -> Iterator[_V]:
    return (values[id_] for id_ in ids if id_ in values)


def _peer_indexes(peers: Iterable[Peer]) -> tuple[Any, ...]:
    """Peers by key, peers by address, and proxies' peers by cluster."""
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
    ordered = {cluster: tuple(sorted(peers, key=lambda peer: peer.id)) for cluster, peers in proxies.items()}
    return by_key, by_address, ordered


def _memberships(groups: Iterable[Group]) -> dict[PeerId, tuple[Group, ...]]:
    by_peer: dict[PeerId, list[Group]] = {}
    for group in sorted(groups, key=lambda group: (group.name, group.id)):
        for peer_id in group.peers:
            by_peer.setdefault(peer_id, []).append(group)
    return {peer_id: tuple(of_peer) for peer_id, of_peer in by_peer.items()}


def _resources(networks: Iterable[RoutedNetwork]) -> dict[str, tuple[RoutedNetwork, NetworkResource]]:
    return {resource.id: (network, resource) for network in networks for resource in network.resources}


@dataclass(frozen=True, slots=True)
class Touched:
    """Rows that a change wrote, so that only these are read again; a deleted row counts as written."""

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
    """Notice of a commit: the account before and after, and the touched rows.

    Changes of one account that wait for a slow subscriber are merged into the oldest `before` and the newest `after`.
    """

    account_id: AccountId
    before: AccountSnapshot | None
    after: AccountSnapshot | None
    touched: Touched

    def then(self, later: "Change") -> "Change":
        return Change(self.account_id, self.before, later.after, self.touched | later.touched)


class Changes:
    """Queue of one subscriber's notices: at most one per account, oldest first."""

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
    """The current snapshot of each account, and the subscribers to changes. Belongs to one event loop.

    Reading never waits. `State` replaces snapshots after each commit, in the order of commits.
    """

    def __init__(self) -> None:
        self._accounts: dict[AccountId, AccountSnapshot] = {}
        self.names = Names()
        """Proved domains of services and validated custom domains, with the accounts that own them."""
        self._domains: dict[str, AccountId] = {}
        self._keys: dict[str, AccountId] = {}
        self._subscribers: set[Changes] = set()

    def get(self, account_id: str) -> AccountSnapshot | None:
        return self._accounts.get(AccountId(account_id))

    def all(self) -> tuple[AccountSnapshot, ...]:
        return tuple(self._accounts.values())

    def by_domain(self, domain: str) -> tuple[AccountSnapshot, Service] | None:
        """The service of a proved domain in any spelling, among all accounts."""
        try:
            account_id = self._domains.get(fold(domain))
        except ValueError:
            return None
        snapshot = self._accounts.get(account_id) if account_id is not None else None
        service = snapshot.service_by_domain(domain) if snapshot is not None else None
        return (snapshot, service) if snapshot is not None and service is not None else None

    def by_peer_key(self, key: str) -> tuple[AccountSnapshot, Peer] | None:
        """The peer with this WireGuard public key, among all accounts."""
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
        """Replaces the snapshot of an account and notifies every subscriber. Only `State` calls this."""
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
