"""Conversion between rows of the overlay's tables and models."""

from collections.abc import Iterable
from dataclasses import asdict
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from netbird_management.model.accounts import (
    Account,
    AccountSettings,
    CustomDomain,
    Dns,
    Group,
    Nameserver,
    NameserverGroup,
    NetworkResource,
    NetworkRouter,
    Peer,
    PeerMeta,
    Policy,
    PolicyRule,
    ProxyPeer,
    Revoked,
    Role,
    RoutedNetwork,
    User,
    Zone,
    ZoneRecord,
)
from netbird_management.model.ids import AccountId, GroupId, PeerId, PolicyId, UserId
from netbird_management.store.models import (
    AccountRow,
    DomainRow,
    GroupRow,
    NameserverGroupRow,
    NetworkRow,
    PeerRow,
    PolicyRow,
    RevocationRow,
    UserRow,
    ZoneRow,
)
from netbird_management.store.stored import decoded


def account_of(row: AccountRow) -> Account:
    return Account(
        id=AccountId(row.id),
        created_at=row.created_at,
        created_by=row.created_by,
        network=IPv4Network(row.network),
        network_v6=IPv6Network(row.network_v6),
        dns_domain=row.dns_domain,
        serial=row.serial,
        settings=decoded(AccountSettings, row.settings),
    )


def dns_of(servers: Iterable[NameserverGroupRow], zones: Iterable[ZoneRow]) -> Dns:
    return Dns(
        nameservers=tuple(nameserver_group_of(row) for row in sorted(servers, key=lambda row: row.id)),
        zones=tuple(zone_of(row) for row in sorted(zones, key=lambda row: row.id)),
    )


def nameserver_group_of(row: NameserverGroupRow) -> NameserverGroup:
    return NameserverGroup(
        id=row.id,
        name=row.name,
        nameservers=decoded(tuple[Nameserver, ...], row.nameservers),
        groups=tuple(GroupId(id_) for id_ in row.groups),
        domains=tuple(row.domains),
        description=row.description,
        enabled=row.enabled,
        primary=row.primary,
        search_domains_enabled=row.search_domains_enabled,
    )


def zone_of(row: ZoneRow) -> Zone:
    return Zone(
        id=row.id,
        name=row.name,
        domain=row.domain,
        distribution_groups=tuple(GroupId(id_) for id_ in row.distribution_groups),
        records=decoded(tuple[ZoneRecord, ...], row.records),
        enabled=row.enabled,
        enable_search_domain=row.enable_search_domain,
    )


def network_of(row: NetworkRow) -> RoutedNetwork:
    return RoutedNetwork(
        id=row.id,
        name=row.name,
        description=row.description,
        resources=decoded(tuple[NetworkResource, ...], row.resources),
        routers=decoded(tuple[NetworkRouter, ...], row.routers),
    )


def revoked_of(row: RevocationRow) -> Revoked:
    return Revoked(id=row.id, subject=row.subject, token_hash=row.token_hash, not_before=row.not_before)


def user_of(row: UserRow) -> User:
    return User(
        id=UserId(row.id),
        account_id=AccountId(row.account_id),
        role=Role(row.role),
        created_at=row.created_at,
        email=row.email,
        name=row.name,
        auto_groups=tuple(GroupId(id_) for id_ in row.auto_groups),
        is_service_user=row.is_service_user,
        blocked=row.blocked,
        pending_approval=row.pending_approval,
        last_login=row.last_login,
    )


def group_of(row: GroupRow, peers: Iterable[str]) -> Group:
    return Group(id=GroupId(row.id), name=row.name, peers=frozenset(PeerId(id_) for id_ in peers), issued=row.issued)


def peer_of(row: PeerRow) -> Peer:
    return Peer(
        id=PeerId(row.id),
        account_id=AccountId(row.account_id),
        key=row.key,
        ip=IPv4Address(row.ip),
        ipv6=None if row.ipv6 is None else IPv6Address(row.ipv6),
        name=row.name,
        dns_label=row.dns_label,
        created_at=row.created_at,
        user_id=None if row.user_id is None else UserId(row.user_id),
        meta=decoded(PeerMeta, row.meta),
        ssh_key=row.ssh_key,
        connected=row.connected,
        stream_started_ns=row.stream_started_ns,
        connection_ip=row.connection_ip,
        last_seen=row.last_seen,
        last_login=row.last_login,
        ephemeral=row.ephemeral,
        stock=row.stock,
        login_expiration_enabled=row.login_expiration_enabled,
        login_expired=row.login_expired,
        extra_dns_labels=tuple(row.extra_dns_labels),
        proxy=None
        if row.proxy_cluster is None
        else ProxyPeer(row.proxy_cluster, row.wireguard_endpoint, row.serves_dns),
    )


def policy_of(row: PolicyRow) -> Policy:
    return Policy(
        id=PolicyId(row.id),
        name=row.name,
        enabled=row.enabled,
        description=row.description,
        rules=decoded(tuple[PolicyRule, ...], row.rules),
    )


def policy_row(account_id: AccountId, policy: Policy) -> PolicyRow:
    return PolicyRow(
        id=policy.id,
        account_id=account_id,
        name=policy.name,
        enabled=policy.enabled,
        description=policy.description,
        rules=[asdict(rule) for rule in policy.rules],
    )


def domain_of(row: DomainRow) -> CustomDomain:
    return CustomDomain(row.id, AccountId(row.account_id), row.domain, row.target_cluster, row.validated)
