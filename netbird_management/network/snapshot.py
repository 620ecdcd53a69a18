"""What is true of an account right now, in memory: gates and maps are answered from here, never from the database.

A snapshot is immutable. Whoever changes an account does it through `State.change`: one transaction, and after its
commit the snapshot is replaced in one assignment and the subscribers are told what changed.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MappingProxyType

from netbird_management.ids import AccountId, GroupId, PeerId, PolicyId, ServiceId, UserId
from netbird_management.network.model import (
    ALL_GROUP,
    NO_DNS,
    Account,
    CustomDomain,
    Dns,
    Group,
    Peer,
    Policy,
    Revoked,
    User,
)
from netbird_management.services.domains import fold
from netbird_management.services.model import Service


@dataclass(frozen=True, slots=True, eq=False)
class AccountSnapshot:
    """One account with all that belongs to it. Build it with `of`, which makes the indexes."""

    account: Account
    users: Mapping[UserId, User]
    groups: Mapping[GroupId, Group]
    peers: Mapping[PeerId, Peer]
    services: Mapping[ServiceId, Service]
    policies: Mapping[PolicyId, Policy]
    custom_domains: tuple[CustomDomain, ...] = ()
    dns: Dns = NO_DNS
    revocations: tuple[Revoked, ...] = ()
    """Of the last day, when it was read; the oldest first."""
    generation: int = 0
    """Rises with each replacement in this process."""
    _by_domain: Mapping[str, Service] = field(default_factory=dict, repr=False)
    _by_key: Mapping[str, Peer] = field(default_factory=dict, repr=False)
    _by_address: Mapping[IPv4Address | IPv6Address, Peer] = field(default_factory=dict, repr=False)
    _groups_of: Mapping[PeerId, tuple[Group, ...]] = field(default_factory=dict, repr=False)
    _proxy_peers: Mapping[str, tuple[Peer, ...]] = field(default_factory=dict, repr=False)

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
        revocations: tuple[Revoked, ...] = (),
        generation: int = 0,
    ) -> "AccountSnapshot":
        """A snapshot with its indexes. The mappings are taken as they are: do not change them afterwards."""
        users, groups, peers = users or {}, groups or {}, peers or {}
        services, policies = services or {}, policies or {}
        by_address: dict[IPv4Address | IPv6Address, Peer] = {}
        proxies: dict[str, list[Peer]] = {}
        for peer in peers.values():
            by_address[peer.ip] = peer
            if peer.ipv6 is not None:
                by_address[peer.ipv6] = peer
            if peer.proxy is not None:
                proxies.setdefault(peer.proxy.cluster, []).append(peer)
        membership: dict[PeerId, list[Group]] = {}
        for group in sorted(groups.values(), key=lambda group: (group.name, group.id)):
            for peer_id in group.peers:
                membership.setdefault(peer_id, []).append(group)
        return cls(
            account=account,
            users=MappingProxyType(users),
            groups=MappingProxyType(groups),
            peers=MappingProxyType(peers),
            services=MappingProxyType(services),
            policies=MappingProxyType(policies),
            custom_domains=custom_domains,
            dns=dns,
            revocations=revocations,
            generation=generation,
            _by_domain={service.domain: service for service in services.values()},
            _by_key={peer.key: peer for peer in peers.values()},
            _by_address=by_address,
            _groups_of={peer_id: tuple(held) for peer_id, held in membership.items()},
            _proxy_peers={cluster: tuple(sorted(held, key=lambda peer: peer.id)) for cluster, held in proxies.items()},
        )

    def service_by_domain(self, domain: str) -> Service | None:
        """The service of a domain in any spelling; `None` too for what is no domain."""
        try:
            return self._by_domain.get(fold(domain))
        except ValueError:
            return None

    def peer_by_key(self, key: str) -> Peer | None:
        return self._by_key.get(key)

    def peer_by_address(self, address: str | IPv4Address | IPv6Address) -> Peer | None:
        """The peer that holds an overlay address; a v4-mapped IPv6 address is its IPv4 address.

        Raises `ValueError` for text that is no address.
        """
        parsed = ip_address(address) if isinstance(address, str) else address
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return self._by_address.get(parsed)

    def groups_of(self, peer_id: PeerId) -> tuple[Group, ...]:
        """Every group that holds the peer, `All` included, ordered by name. A proxy's peer is in none."""
        return self._groups_of.get(peer_id, ())

    def proxy_peers(self, cluster: str) -> tuple[Peer, ...]:
        """The overlay nodes of a cluster's proxies, connected or not, ordered by id."""
        return self._proxy_peers.get(cluster, ())

    @property
    def clusters(self) -> frozenset[str]:
        """The clusters that have at least one proxy peer here."""
        return frozenset(self._proxy_peers)

    @property
    def group_all(self) -> Group:
        return next(group for group in self.groups.values() if group.name == ALL_GROUP)

    def members(self, group_ids: tuple[GroupId, ...] | frozenset[GroupId]) -> frozenset[PeerId]:
        """The peers in any of these groups; groups that do not exist hold nobody."""
        return frozenset().union(*(group.peers for id_ in group_ids if (group := self.groups.get(id_)) is not None))


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
        self._domains: dict[str, AccountId] = {}
        self._keys: dict[str, AccountId] = {}
        self._subscribers: set[Changes] = set()

    def get(self, account_id: str) -> AccountSnapshot | None:
        return self._accounts.get(AccountId(account_id))

    def all(self) -> tuple[AccountSnapshot, ...]:
        return tuple(self._accounts.values())

    def by_domain(self, domain: str) -> tuple[AccountSnapshot, Service] | None:
        """The service of a domain, whichever account it is in; any spelling."""
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
        if before is not None:
            for domain in before._by_domain:
                if self._domains.get(domain) == account_id:
                    del self._domains[domain]
            for key in before._by_key:
                if self._keys.get(key) == account_id:
                    del self._keys[key]
        if after is None:
            self._accounts.pop(account_id, None)
        else:
            self._accounts[account_id] = after
            self._domains.update(dict.fromkeys(after._by_domain, account_id))
            self._keys.update(dict.fromkeys(after._by_key, account_id))
        change = Change(account_id, before, after, touched)
        for subscriber in self._subscribers:
            subscriber.put(change)
