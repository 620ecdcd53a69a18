"""Accounts and what is in their overlay: frozen, without wire or database types."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from netbird_management.model.ids import AccountId, GroupId, PeerId, PolicyId, UserId

ALL_GROUP = "All"
"""The group that holds every ordinary peer; it can be neither renamed nor deleted."""


@dataclass(frozen=True, slots=True)
class AccountSettings:
    """The settings of an account. `groups_propagation_enabled` is always on: groups of a user move their peers."""

    peer_login_expiration_enabled: bool = False
    peer_login_expiration: int = 86400
    """Time, in seconds, after which a user must log in to the identity provider again for each of their peers."""
    routing_peer_dns_resolution_enabled: bool = True
    lazy_connection_enabled: bool = False
    peer_inactivity_expiration: int = 600
    peer_expose_groups: tuple[GroupId, ...] = ()
    groups_propagation_enabled: bool = True
    user_approval_required: bool = True
    disabled_management_groups: tuple[GroupId, ...] = ()
    """Groups whose peers get no DNS configuration."""


@dataclass(frozen=True, slots=True)
class Account:
    """A tenant: its people, its overlay network and its services.

    `serial` counts the changes of its network and never goes down.
    """

    id: AccountId
    created_at: datetime
    created_by: str
    network: IPv4Network
    network_v6: IPv6Network
    dns_domain: str
    serial: int = 0
    settings: AccountSettings = AccountSettings()


class Role(StrEnum):
    OWNER = "owner"
    ADMIN = "admin"
    NETWORK_ADMIN = "network_admin"
    AUDITOR = "auditor"
    USER = "user"


@dataclass(frozen=True, slots=True)
class User:
    """A person, or a program (`is_service_user`). A pending user is also blocked."""

    id: UserId
    account_id: AccountId
    role: Role
    created_at: datetime
    email: str = ""
    name: str = ""
    auto_groups: tuple[GroupId, ...] = ()
    is_service_user: bool = False
    blocked: bool = False
    pending_approval: bool = False
    last_login: datetime | None = None


@dataclass(frozen=True, slots=True)
class Group:
    id: GroupId
    name: str
    peers: frozenset[PeerId] = frozenset()
    issued: str = "api"


@dataclass(frozen=True, slots=True)
class PeerMeta:
    """Facts that a peer reports about its own machine. They are used for display and for map formats only, as any peer
    may report anything."""

    hostname: str = ""
    go_os: str = ""
    kernel: str = ""
    core: str = ""
    platform: str = ""
    os: str = ""
    netbird_version: str = ""
    ui_version: str = ""
    kernel_version: str = ""
    os_version: str = ""
    serial_number: str = ""
    capabilities: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()
    """Names of the agent's own settings that are on, as the API shows them; ordered."""


@dataclass(frozen=True, slots=True)
class ProxyPeer:
    """The part of a peer that only a proxy's node in the overlay has.

    `wireguard_endpoint` ("host:port", "" for NetBird's proxies) is the address at which stock WireGuard clients reach
    the proxy. A proxy peer with an endpoint is not deleted when it disconnects. `serves_dns` is True if the proxy
    answers DNS queries for the account's zones at its overlay address.
    """

    cluster: str
    wireguard_endpoint: str = ""
    serves_dns: bool = False


@dataclass(frozen=True, slots=True)
class Peer:
    """A node of the overlay. `key` is base64 of its WireGuard public key. `dns_label` is one label, not the full name.

    `stock` peers run plain WireGuard and never log in. `stream_started_ns` is the start of the sync stream that
    `connected` refers to; a report about an earlier stream is ignored. With `login_expiration_enabled`, the login by
    which its user added the peer expires as the account's settings require, and then `login_expired` is set.
    `extra_dns_labels` are further names in the account's zone, which several peers may share.
    """

    id: PeerId
    account_id: AccountId
    key: str
    ip: IPv4Address
    name: str
    dns_label: str
    created_at: datetime
    ipv6: IPv6Address | None = None
    user_id: UserId | None = None
    meta: PeerMeta = PeerMeta()
    ssh_key: str = ""
    connected: bool = False
    stream_started_ns: int = 0
    connection_ip: str = ""
    last_seen: datetime | None = None
    last_login: datetime | None = None
    ephemeral: bool = False
    stock: bool = False
    login_expiration_enabled: bool = False
    login_expired: bool = False
    extra_dns_labels: tuple[str, ...] = ()
    proxy: ProxyPeer | None = None

    @property
    def by_login(self) -> bool:
        """True if a user's agent added the peer, so that only this user's login renews it."""
        return self.user_id is not None and not self.stock


class ResourceType(StrEnum):
    PEER = "peer"
    HOST = "host"
    DOMAIN = "domain"
    SUBNET = "subnet"


@dataclass(frozen=True, slots=True)
class NetworkResource:
    """A destination behind routing peers: one address, a subnet, or the names of a domain.

    `address` is like `10.0.0.5/32` for a `host` and like `10.0.0.0/16` for a `subnet`. For a `domain` it is a folded
    name, or `*.` and a folded name for every name below it. Policies name the resource itself or one of its groups.
    """

    id: str
    name: str
    type: ResourceType
    address: str
    groups: tuple[GroupId, ...] = ()
    description: str = ""
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class NetworkRouter:
    """The peers that route packets to a network: `peer`, or each peer in `peer_groups`. Agents prefer the lowest
    metric."""

    id: str
    metric: int
    masquerade: bool
    enabled: bool = True
    peer: PeerId | None = None
    peer_groups: tuple[GroupId, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutedNetwork:
    """Resources outside the overlay, and the peers that route to them."""

    id: str
    name: str
    description: str = ""
    resources: tuple[NetworkResource, ...] = ()
    routers: tuple[NetworkRouter, ...] = ()


@dataclass(frozen=True, slots=True)
class Resource:
    """A single peer or network resource that a policy names instead of groups."""

    id: str
    type: ResourceType


@dataclass(frozen=True, slots=True)
class PortRange:
    """A range of ports, both ends included."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A rule about connections from sources to destinations. Each side sets either groups or a resource."""

    id: str
    name: str
    enabled: bool = True
    sources: tuple[GroupId, ...] = ()
    source_resource: Resource | None = None
    destinations: tuple[GroupId, ...] = ()
    destination_resource: Resource | None = None
    bidirectional: bool = False
    protocol: str = "all"
    """`all`, `tcp`, `udp` or `icmp`."""
    action: str = "accept"
    """`accept` or `drop`."""
    ports: tuple[int, ...] = ()
    port_ranges: tuple[PortRange, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    id: PolicyId
    name: str
    enabled: bool = True
    rules: tuple[PolicyRule, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True)
class Revoked:
    """Sessions that ended before they expired: one session by the SHA-256 of its token, or every session issued to a
    subject before `not_before`."""

    id: str
    subject: str
    token_hash: bytes
    not_before: datetime


@dataclass(frozen=True, slots=True)
class CustomDomain:
    """A domain of an account's own; services under it are served by `target_cluster` once it is `validated`."""

    id: str
    account_id: AccountId
    domain: str
    target_cluster: str
    validated: bool = False


@dataclass(frozen=True, slots=True)
class Nameserver:
    ip: str
    port: int = 53


@dataclass(frozen=True, slots=True)
class NameserverGroup:
    """DNS servers for the members of some groups: for every name (`primary`), or for names under `domains`."""

    id: str
    name: str
    nameservers: tuple[Nameserver, ...]
    groups: tuple[GroupId, ...]
    domains: tuple[str, ...] = ()
    description: str = ""
    enabled: bool = True
    primary: bool = False
    search_domains_enabled: bool = False


@dataclass(frozen=True, slots=True)
class ZoneRecord:
    """A DNS record. `name` is the full name without trailing dot; `type` is A, AAAA or CNAME; `ttl` is in seconds."""

    id: str
    name: str
    type: str
    content: str
    ttl: int


@dataclass(frozen=True, slots=True)
class Zone:
    """A DNS zone that the operator defines for the members of some groups."""

    id: str
    name: str
    domain: str
    distribution_groups: tuple[GroupId, ...]
    records: tuple[ZoneRecord, ...] = ()
    enabled: bool = True
    enable_search_domain: bool = False


@dataclass(frozen=True, slots=True)
class Dns:
    """The name servers and zones that an account sends to its peers' resolvers, each ordered by id."""

    nameservers: tuple[NameserverGroup, ...] = ()
    zones: tuple[Zone, ...] = ()


NO_DNS = Dns()
